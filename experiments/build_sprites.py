"""Makes the sprite atlas that ``scenes`` and the pretraining of ``tiny`` draw from.

Input is an unpacked folder of icon sets (``noto``, ``noto-v1``, ``fxemoji``, ``twemoji``, ``emojione``,
``fluent-emoji-flat``, each with ``icons.json``); ``rsvg-convert`` renders them. Output is one PNG atlas a style,
``index.json`` and ``ATTRIBUTION.md``. Three styles serve the federated scenes, three others the pretraining, so that
the backbone meets every federated picture for the first time.

    python -m experiments.build_sprites NODE_MODULES/@iconify-json fedmpt/data/sprites
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

COLUMNS = 16
# Of a sprite, federated and pretraining: side of its cell in px, and palette entries (fewer, and gradients band).
CELL = {"scenes": 64, "pretrain": 48}
COLOURS = {"scenes": 48, "pretrain": 26}

SCENE_STYLES = ("noto", "fxemoji")
PRETRAIN_STYLES = (
    *("noto-v1", "twemoji", "emojione"),
    *("fluent-emoji-flat", "fluent-emoji", "streamline-emojis"),
)
LICENCES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fxemoji": "Apache-2.0",
    "twemoji": "CC-BY-4.0",
    "emojione": "CC-BY-4.0",
    "fluent-emoji-flat": "MIT",
    "fluent-emoji": "MIT",
    "streamline-emojis": "CC-BY-4.0",
}
SOURCES = {
    "noto": ("Noto Emoji", "Google", "https://github.com/googlefonts/noto-emoji"),
    "noto-v1": ("Noto Emoji v1", "Google", "https://github.com/googlefonts/noto-emoji"),
    "fxemoji": ("FxEmojis", "Mozilla", "https://github.com/mozilla/fxemoji"),
    "twemoji": ("Twemoji", "Twitter and contributors", "https://github.com/jdecked/twemoji"),
    "emojione": ("EmojiOne 2.3", "EmojiOne", "https://github.com/EmojiTwo/emojitwo"),
    "fluent-emoji-flat": (
        "Fluent Emoji (flat)",
        "Microsoft",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent-emoji": (
        "Fluent Emoji",
        "Microsoft",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "streamline-emojis": (
        "Streamline Emojis",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
}

# Icons of a class: name, or name:role where a picture is kept for one split of the federated scenes.
SEEN = {
    "aeroplane": "airplane airplane-departure:train airplane-arrival:test small-airplane",
    "bicycle": "bicycle",
    "bird": "bird dove parrot:train duck owl:train eagle:test swan:test rooster:train flamingo:test",
    "boat": "sailboat speedboat canoe:train ferry motor-boat:test passenger-ship:train ship:test",
    "bottle": "bottle-with-popping-cork lotion-bottle:test baby-bottle:train",
    "bus": "bus oncoming-bus trolleybus:train",
    "car": "automobile oncoming-automobile taxi:train police-car:test racing-car:train "
    "sport-utility-vehicle:test",
    "cat": "cat cat-face black-cat:test grinning-cat:train smiling-cat-face-with-open-mouth:train "
    "weary-cat-face:test",
    "chair": "chair seat",
    "cow": "cow cow-face ox:train water-buffalo:test",
    "dining table": "",
    "dog": "dog dog-face poodle:train guide-dog:test service-dog:train",
    "horse": "horse horse-face carousel-horse:test",
    "motorbike": "motorcycle motor-scooter",
    "person": "man:train woman boy:test girl:train person-standing person-walking:train "
    "person-running:test old-man:test old-woman:train",
    "potted plant": "potted-plant",
    "sheep": "ewe ram",
    "sofa": "couch-and-lamp",
    "train": "train locomotive:train high-speed-train bullet-train:test metro:train tram-car:test "
    "station:train",
    "tv monitor": "television desktop-computer",
}
UNSEEN = {
    "elephant": "elephant",
    "rabbit": "rabbit rabbit-face",
    "fish": "fish tropical-fish blowfish",
    "tree": "deciduous-tree evergreen-tree palm-tree",
    "house": "house house-with-garden",
    "umbrella": "umbrella umbrella-with-rain-drops",
    "guitar": "guitar",
    "banana": "banana",
    "cake": "birthday-cake shortcake",
    "clock": "alarm-clock mantelpiece-clock three-oclock",
    "book": "closed-book open-book green-book",
    "bear": "bear teddy-bear",
}
# What lies about in the scenes, outside both label sets; the word is what a caption of the pretraining calls it.
CLUTTER = {
    "star": "star",
    "apple": "red-apple green-apple",
    "key": "key",
    "hammer": "hammer",
    "balloon": "balloon",
    "ball": "soccer-ball basketball",
    "crown": "crown",
    "cup": "hot-beverage",
    "gift": "wrapped-gift",
    "bell": "bell",
    "envelope": "envelope",
    "camera": "camera",
    "telephone": "telephone",
    "light bulb": "light-bulb",
    "mushroom": "mushroom",
    "pizza": "pizza",
    "strawberry": "strawberry",
    "gem": "gem-stone",
    "anchor": "anchor",
    "backpack": "backpack",
    "glasses": "glasses",
    "trophy": "trophy",
    "candle": "candle",
    "cloud": "cloud",
    "sun": "sun-with-face",
    "fire": "fire",
    "cookie": "cookie",
    "lollipop": "lollipop",
    "hat": "top-hat",
    "ring": "ring",
    "rocket": "rocket",
    "dress": "dress",
    "shoe": "high-heeled-shoe running-shoe",
    "snail": "snail",
    "butterfly": "butterfly",
    "frog": "frog",
    "turtle": "turtle",
    "octopus": "octopus",
    "drum": "drum",
    "shell": "spiral-shell",
}
# Further words that only the pretraining sees, to widen what the text tower can tell apart.
EXTRA = {
    "monkey": "monkey monkey-face",
    "pig": "pig pig-face",
    "mouse": "mouse mouse-face",
    "lion": "lion",
    "tiger": "tiger tiger-face",
    "panda": "panda",
    "snake": "snake",
    "bee": "honeybee",
    "spider": "spider",
    "whale": "whale spouting-whale",
    "dolphin": "dolphin",
    "crab": "crab",
    "crocodile": "crocodile",
    "camel": "camel two-hump-camel",
    "fox": "fox",
    "goat": "goat",
    "rose": "rose",
    "tulip": "tulip",
    "sunflower": "sunflower",
    "leaf": "maple-leaf four-leaf-clover",
    "grapes": "grapes",
    "melon": "watermelon melon",
    "lemon": "lemon",
    "pineapple": "pineapple",
    "cherries": "cherries",
    "tomato": "tomato",
    "carrot": "carrot",
    "corn": "ear-of-corn",
    "bread": "bread",
    "cheese": "cheese-wedge",
    "hamburger": "hamburger",
    "fries": "french-fries",
    "egg": "cooking egg",
    "doughnut": "doughnut",
    "ice cream": "ice-cream soft-ice-cream",
    "wine": "wine-glass",
    "beer": "beer-mug",
    "fork": "fork-and-knife",
    "violin": "violin",
    "trumpet": "trumpet",
    "saxophone": "saxophone",
    "microphone": "microphone studio-microphone",
    "helicopter": "helicopter",
    "tractor": "tractor",
    "truck": "delivery-truck articulated-lorry",
    "ambulance": "ambulance",
    "fire engine": "fire-engine",
    "traffic light": "vertical-traffic-light",
    "tent": "tent camping",
    "castle": "castle",
    "factory": "factory",
    "bridge": "bridge-at-night",
    "mountain": "snow-capped-mountain mount-fuji",
    "moon": "full-moon crescent-moon",
    "rainbow": "rainbow",
    "lightning": "high-voltage",
    "snowman": "snowman",
    "hand": "raised-hand waving-hand",
    "eye": "eye",
    "face": "grinning-face smiling-face-with-sunglasses",
    "heart": "red-heart",
    "skull": "skull",
    "ghost": "ghost",
    "robot": "robot",
    "shirt": "t-shirt",
    "bag": "handbag shopping-bags",
    "watch": "watch",
    "mobile phone": "mobile-phone",
    "keyboard": "keyboard musical-keyboard",
    "printer": "printer",
    "battery": "battery",
    "magnet": "magnet",
    "scissors": "scissors",
    "pencil": "pencil",
    "lock": "locked",
    "door": "door",
    "bed": "bed",
    "toilet": "toilet",
    "shower": "shower bathtub",
    "newspaper": "newspaper",
    "money": "money-bag dollar-banknote",
    "flag": "triangular-flag chequered-flag",
    "bomb": "bomb",
    "medal": "sports-medal",
    "tennis": "tennis",
    "dice": "game-die",
    "puzzle": "puzzle-piece",
    "globe": "globe-showing-europe-africa",
}
# FxEmojis names its pictures in its own way; same grammar as above.
FXEMOJI = {
    "aeroplane": "airplane",
    "bicycle": "bicycle",
    "bird": "bird doveofpeace:train rooster:train chicken:test",
    "boat": "sailboat speedboat:train ship",
    "bottle": "babybottle:train",
    "bus": "bus:train oncomingbus trolleybus:test",
    "car": "automobile oncomingautomobile:train taxi:test policecar:train racecar:test",
    "cat": "cat catside",
    "chair": "seat",
    "cow": "cow cowface ox:train waterbuffalo:test",
    "dog": "dog dogside poodle:test",
    "horse": "horse horseface",
    "motorbike": "motorcycle",
    "person": "man:test woman:train boy girl walking:test running:train",
    "sheep": "sheep ram",
    "train": "train:test steamlocomotive highspeedtrain:train metro",
    "tv monitor": "television",
    "elephant": "elephant",
    "rabbit": "bunny bunnyside",
    "fish": "fish tropicalfish blowfish",
    "tree": "deciduoustree evergreen palmtree",
    "house": "housebuilding housewithgarden",
    "umbrella": "umbrella umbrellawithraindrops",
    "guitar": "guitar",
    "banana": "banana",
    "cake": "birthdaycake shortcake",
    "clock": "alarmclock manltepiececlock clock3oclock",
    "book": "closedbook openbook greenbook",
    "bear": "bear",
    "star": "star",
    "apple": "redapple greenapple",
    "key": "key",
    "hammer": "hammer",
    "balloon": "balloon",
    "ball": "soccerball",
    "crown": "crown",
    "cup": "hotbeverage",
    "gift": "present",
    "bell": "bell",
    "camera": "camera",
    "light bulb": "lightbulb",
    "mushroom": "mushroom",
    "pizza": "sliceofpizza",
    "strawberry": "strawberry",
    "gem": "gem",
    "glasses": "glasses",
    "trophy": "trophy",
    "candle": "candle",
    "fire": "fire",
    "cookie": "cookie",
    "hat": "tophat",
    "ring": "ring",
    "rocket": "rocket",
    "dress": "dress",
    "snail": "snail",
    "frog": "frog",
    "turtle": "turtle",
    "octopus": "octopus",
    "shell": "spiralshell",
}
TOO_LARGE = {("fluent-emoji", "umbrella"), ("fluent-emoji", "umbrella-with-rain-drops")}  # librsvg
POTTED = ("herb", "seedling", "cactus", "sunflower", "tulip")
PLATE = {  # the others: fork-and-knife-with-plate
    "fxemoji": "forkandknife",
    "streamline-emojis": "cooking",
}


class Sprite(NamedTuple):
    """One picture on its way into the atlas."""

    label: str
    kind: str  # seen, unseen, clutter, extra
    style: str
    icon: str
    role: str  # train, test, both: federated scenes; pretrain: the backbone
    svg: str
    codepoint: str | None
    licence: str


class IconSet:
    """The pictures of one style, as the set's ``icons.json`` holds them."""

    def __init__(self, folder: Path, style: str) -> None:
        data = json.loads((folder / style / "icons.json").read_text())
        self.icons = data["icons"]
        self.aliases = data.get("aliases", {})
        self.width, self.height = data.get("width", 16), data.get("height", 16)
        self.codepoints: dict[str, str] = {}
        for code, name in json.loads((folder / style / "chars.json").read_text()).items():
            if len(code) < len(self.codepoints.get(name, "x" * 99)):
                self.codepoints[name] = code

    def body(self, name: str) -> tuple[str, int, int] | None:
        """Return a picture's SVG body, width and height; None where the set lacks it."""
        alias = self.aliases.get(name, {}).get("parent")
        icon = self.icons.get(name) or self.icons.get(alias) or self.icons.get(f"{name}-1")
        if icon is None:
            return None
        return icon["body"], icon.get("width", self.width), icon.get("height", self.height)


def document(body: str, width: int = 64, height: int = 64) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="128" height="128">{body}</svg>'
    )


def nested(icon: tuple[str, int, int], x: int, y: int, side: int) -> str:
    body, width, height = icon
    return (
        f'<svg x="{x}" y="{y}" width="{side}" height="{side}" viewBox="0 0 {width} {height}">'
        f"{body}</svg>"
    )


# Own drawings: palette (light, main, dark, accent), whether surfaces are shaded, corner radius, outline width.
DRAWING_STYLES = {
    "noto": (("#a1724e", "#855c42", "#5d4037", "#ffca28"), True, 3, 0),
    "noto-v1": (("#d9a066", "#b9793f", "#8a5527", "#40c0e7"), True, 6, 0),
    "fxemoji": (("#c4a076", "#a57c52", "#6b4c2e", "#fa6450"), False, 1, 1.5),
    "twemoji": (("#d99e82", "#c1694f", "#662113", "#55acee"), False, 4, 0),
    "emojione": (("#dbb471", "#af7f3a", "#89664c", "#62727a"), False, 2, 0),
    "fluent-emoji-flat": (("#d3883e", "#a56953", "#6d4534", "#00a6ed"), False, 5, 0),
    "fluent-emoji": (("#e0a070", "#b0714b", "#70432f", "#3cc8ff"), True, 4, 0),
    "streamline-emojis": (("#deb690", "#b57f50", "#45413c", "#80ddff"), False, 3, 1.2),
}
SOFA_COLOURS = {
    "noto": (("#e53935", "#b71c1c"), ("#5c6bc0", "#303f9f"), ("#8d6e63", "#5d4037")),
    "noto-v1": (("#7cb342", "#558b2f"), ("#ab47bc", "#7b1fa2"), ("#fcc21b", "#d98f00")),
    "fxemoji": (("#2b9eb3", "#1f7183"), ("#fa6450", "#b9402f"), ("#b0b8b8", "#7c8787")),
    "twemoji": (("#dd2e44", "#a0041e"), ("#3b88c3", "#226699"), ("#ffac33", "#c1694f")),
    "emojione": (("#ed4c5c", "#c94747"), ("#42ade2", "#1b75bb"), ("#83bf4f", "#699635")),
    "fluent-emoji-flat": (("#f8312f", "#ca0b4a"), ("#0074ba", "#004c87"), ("#8d65c5", "#533566")),
    "fluent-emoji": (("#ff822d", "#d0521b"), ("#5092ff", "#2a5fc0"), ("#86d72f", "#44911b")),
    "streamline-emojis": (("#ff6242", "#e04122"), ("#00b8f0", "#009fd9"), ("#ffe500", "#ebcb00")),
}


def drawings(style: str, plate: tuple[str, int, int]) -> dict[str, dict[str, str]]:
    """Draw, in the manner of ``style``, what no emoji shows: label -> name -> SVG document."""
    (light, main, dark, accent), shaded, radius, line = DRAWING_STYLES[style]
    stroke = f'stroke="{dark}" stroke-width="{line}"' if line else ""
    gradient = (
        f'<defs><linearGradient id="g" x1="0" y1="0" x2="0" y2="1"><stop offset="0" '
        f'stop-color="{light}"/><stop offset="1" stop-color="{dark}"/></linearGradient></defs>'
        if shaded
        else ""
    )
    fill = "url(#g)" if shaded else main

    def box(x: float, y: float, w: float, h: float, colour: str, r: float = 1) -> str:
        return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{r}" fill="{colour}" {stroke}/>'

    def ellipse(x: float, y: float, a: float, b: float, colour: str) -> str:
        return f'<ellipse cx="{x}" cy="{y}" rx="{a}" ry="{b}" fill="{colour}" {stroke}/>'

    square = box(2, 26, 60, 8, fill, radius) + box(7, 34, 5, 26, dark) + box(52, 34, 5, 26, dark)
    back = box(16, 34, 4, 18, main) + box(44, 34, 4, 18, main)
    pedestal = (
        ellipse(32, 28, 30, 9, fill) + box(28, 34, 8, 22, dark) + ellipse(32, 57, 15, 4, main)
    )
    cloth = (
        f'<path d="M2 26 L62 26 L58 44 L50 39 L41 44 L32 39 L23 44 L14 39 L6 44 Z" '
        f'fill="{accent}" {stroke}/>'
        + box(2, 23, 60, 6, light, radius)
        + box(9, 42, 5, 18, dark)
        + box(50, 42, 5, 18, dark)
    )
    topdown = box(4, 14, 56, 36, fill, radius * 2) + nested(plate, 18, 18, 28)
    tables = {
        "own-table-square": back + square + nested(plate, 20, 4, 24),
        "own-table-round": pedestal + nested(plate, 22, 6, 20),
        "own-table-cloth": cloth + nested(plate, 21, 2, 22),
        "own-table-top": topdown,
    }

    def sofa(colours: tuple[str, str], cushions: int) -> str:
        front, shade = colours
        inside = 40 / cushions
        parts = [box(8, 14, 48, 26, shade, radius + 3)]
        parts += [
            box(12 + i * inside, 30, inside - 1, 14, front, radius + 1) for i in range(cushions)
        ]
        parts += [box(10, 42, 44, 9, shade, 2)]
        parts += [box(2, 26, 10, 26, front, radius + 2), box(52, 26, 10, 26, front, radius + 2)]
        parts += [box(6, 51, 5, 6, dark), box(53, 51, 5, 6, dark)]
        return "".join(parts)

    sofas = {
        f"own-sofa-{i + 1}": sofa(colours, i + 1) for i, colours in enumerate(SOFA_COLOURS[style])
    }
    front, shade = SOFA_COLOURS[style][0]
    chairs = {
        "own-chair-wood": box(18, 4, 5, 56, dark)
        + box(18, 6, 26, 4, fill, radius)
        + box(20, 14, 22, 4, fill, radius)
        + box(20, 22, 22, 4, fill, radius)
        + box(41, 4, 5, 34, dark)
        + box(14, 34, 36, 6, light, radius)
        + box(14, 40, 4, 22, main)
        + box(46, 40, 4, 22, main),
        "own-chair-office": box(18, 4, 28, 26, front, radius + 4)
        + box(29, 28, 6, 8, dark)
        + box(13, 34, 38, 8, shade, radius + 2)
        + box(30, 42, 4, 12, dark)
        + box(14, 52, 36, 4, dark, 2)
        + ellipse(16, 58, 3, 3, dark)
        + ellipse(48, 58, 3, 3, dark)
        + ellipse(32, 59, 3, 3, dark),
        "own-chair-side": f'<path d="M14 4 L20 4 L24 34 L50 34 L50 40 L48 62 L43 62 L44 40 L24 40 '
        f'L20 62 L15 62 L19 38 Z" fill="{fill}" {stroke}/>',
    }
    glass, tint = SOFA_COLOURS[style][1][1], SOFA_COLOURS[style][2][0]
    bottles = {
        "own-bottle-wine": f'<path d="M28 2 H36 V20 C36 26 42 26 42 34 V60 Q42 62 40 62 H24 Q22 62 '
        f'22 60 V34 C22 26 28 26 28 20 Z" fill="{glass}" {stroke}/>'
        + box(22, 38, 20, 14, "#f5f0e0")
        + box(27, 2, 10, 8, front, 2),
        "own-bottle-water": f'<path d="M27 10 H37 L41 22 Q43 26 41 30 Q43 34 41 38 Q43 44 41 48 '
        f'V58 Q41 62 37 62 H27 Q23 62 23 58 V48 Q21 44 23 38 Q21 34 23 30 Q21 26 23 22 Z" '
        f'fill="#9fd8f0" {stroke}/>' + box(23, 30, 18, 12, tint) + box(26, 3, 12, 7, accent, 2),
    }
    screens = {
        "own-monitor": box(3, 8, 58, 38, dark, radius)
        + box(7, 12, 50, 30, accent, 1)
        + box(28, 46, 8, 8, main)
        + box(18, 53, 28, 5, main, 2),
        "own-television": f'<path d="M22 2 L31 14 M42 2 L33 14" stroke="{dark}" stroke-width="3" '
        'fill="none"/>'
        + box(3, 13, 58, 42, fill, radius + 3)
        + box(8, 19, 38, 30, "#8fb7c4", 6)
        + ellipse(53, 25, 3, 3, light)
        + ellipse(53, 35, 3, 3, light)
        + box(12, 55, 5, 6, dark)
        + box(47, 55, 5, 6, dark),
    }
    wheels = (
        f'<g fill="none" stroke="{dark}" stroke-width="3"><circle cx="15" cy="44" r="12"/>'
        '<circle cx="49" cy="44" r="12"/></g>'
    )
    bicycles = {
        "own-bicycle-city": wheels
        + f'<path d="M15 44 L27 24 H45 L49 44 M27 24 L33 44 H15 M33 44 L45 24 L43 16 H50 M22 20 H31" '
        f'fill="none" stroke="{front}" stroke-width="3.5" stroke-linecap="round"/>',
        "own-bicycle-step": wheels
        + f'<path d="M15 44 H31 L44 20 L49 44 M31 44 L24 22 M19 20 H29 M44 20 L42 14 L50 12" '
        f'fill="none" stroke="{accent}" stroke-width="4" stroke-linecap="round"/>',
    }
    found = {
        "dining table": tables,
        "sofa": sofas,
        "chair": chairs,
        "bottle": bottles,
        "tv monitor": screens,
        "bicycle": bicycles,
    }
    return {
        label: {name: document(gradient + body) for name, body in items.items()}
        for label, items in found.items()
    }


def potted(style: str, plant: tuple[str, int, int], variant: int) -> str:
    """A plant of the set in a pot of our own."""
    front, shade = SOFA_COLOURS[style][variant % 3]
    pot = (
        f'<path d="M18 42 H46 L42 62 H22 Z" fill="{front}"/>'
        f'<rect x="15" y="38" width="34" height="8" rx="2" fill="{shade}"/>'
    )
    return document(nested(plant, 12, 0, 40) + pot)


# Roles of our own drawings in the federated styles, by name.
OWN_ROLES = {
    "own-table-round": "train",
    "own-table-top": "test",
    "own-sofa-1": "train",
    "own-sofa-3": "test",
    "own-chair-office": "train",
    "own-chair-side": "test",
    "own-bottle-water": "test",
    "own-television": "train",
    "own-bicycle-step": "test",
    "own-potted-herb": "train",
    "own-potted-cactus": "test",
}


def collect(folder: Path) -> list[Sprite]:
    """Every sprite of every style, in a fixed order."""
    code_of = IconSet(folder, "twemoji").codepoints | IconSet(folder, "noto").codepoints
    found: list[Sprite] = []
    for style in SCENE_STYLES + PRETRAIN_STYLES:
        icons, scene = IconSet(folder, style), style in SCENE_STYLES
        groups = [("seen", SEEN), ("unseen", UNSEEN), ("clutter", CLUTTER)]
        groups += [] if scene else [("extra", EXTRA)]
        for kind, table in groups:
            for label, listed in table.items():
                names = FXEMOJI.get(label, "") if style == "fxemoji" else listed
                for entry in names.split():
                    name, _, role = entry.partition(":")
                    icon = icons.body(name)
                    if icon is None or (style, name) in TOO_LARGE:
                        continue
                    role = (role or "both") if kind == "seen" else "both"
                    found.append(
                        Sprite(
                            label,
                            kind,
                            style,
                            name,
                            role if scene else "pretrain",
                            document(*icon),
                            code_of.get(name),
                            LICENCES[style],
                        )
                    )
        plate = icons.body(PLATE.get(style, "fork-and-knife-with-plate"))
        if plate is None:
            raise ValueError(f"{style}: no plate")
        own = drawings(style, plate)
        own["potted plant"] = {}
        for variant, plant in enumerate(POTTED):
            icon = icons.body(plant)
            if icon is not None:
                own["potted plant"][f"own-potted-{plant}"] = potted(style, icon, variant)
        for label, pictures in own.items():
            for name, svg in pictures.items():
                role = OWN_ROLES.get(name, "both") if scene else "pretrain"
                borrowed = label in ("dining table", "potted plant")
                licence = f"Apache-2.0 AND {LICENCES[style]}" if borrowed else "Apache-2.0"
                if licence == "Apache-2.0 AND Apache-2.0":
                    licence = "Apache-2.0"
                found.append(Sprite(label, "seen", style, name, role, svg, None, licence))
    return found


def render(svg: str, use: str) -> Image.Image:
    """Render, crop to what is visible, fit into a cell, and reduce to a few colours."""
    png = subprocess.run(
        ["rsvg-convert", "--width", "192", "--height", "192", "--keep-aspect-ratio", "--unlimited"],  # noqa: S607
        input=svg.encode(),
        capture_output=True,
        check=True,
    ).stdout
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    bounds = image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    image = image.crop(bounds)
    scale = CELL[use] / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    return image.quantize(COLOURS[use], method=Image.Quantize.FASTOCTREE).convert("RGBA")


def use_of(style: str) -> str:
    return "scenes" if style in SCENE_STYLES else "pretrain"


def write_atlas(sprites: list[Sprite], target: Path) -> None:
    """Pack the sprites of each style into one PNG and write the index beside them."""
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda sprite: render(sprite.svg, use_of(sprite.style)), sprites))
    rows: list[dict[str, object]] = []
    for style in SCENE_STYLES + PRETRAIN_STYLES:
        members = [i for i, sprite in enumerate(sprites) if sprite.style == style]
        side = CELL[use_of(style)]
        atlas = Image.new("RGBA", (COLUMNS * side, -(-len(members) // COLUMNS) * side))
        for cell, i in enumerate(members):
            x, y = cell % COLUMNS * side, cell // COLUMNS * side
            atlas.paste(images[i], (x, y))
            sprite = sprites[i]
            rows.append(
                {
                    "label": sprite.label,
                    "kind": sprite.kind,
                    "style": style,
                    "icon": sprite.icon,
                    "role": sprite.role,
                    "codepoint": sprite.codepoint,
                    "licence": sprite.licence,
                    "box": [x, y, x + images[i].width, y + images[i].height],
                }
            )
        atlas.save(target / f"{style}.png", optimize=True)
    lines = ",\n".join(json.dumps(row, sort_keys=True, separators=(",", ":")) for row in rows)
    (target / "index.json").write_text(f'{{"sprites": [\n{lines}\n]}}\n')


def write_attribution(sprites: list[Sprite], target: Path) -> None:
    """Write who drew what, under which licence, and what was changed."""
    table = []
    for style in SCENE_STYLES + PRETRAIN_STYLES:
        name, author, url = SOURCES[style]
        count = sum(s.style == style and not s.icon.startswith("own-") for s in sprites)
        used = "federated scenes" if style in SCENE_STYLES else "pretraining"
        table.append(
            f"| `{style}.png` | {name} | {author} | {LICENCES[style]} | {used} | {count} | {url} |"
        )
    own = sum(s.icon.startswith("own-") for s in sprites)
    text = f"""# Attribution of the sprite atlas

| File | Set | Author | Licence | Used by | Pictures | Source |
|---|---|---|---|---|---|---|
{chr(10).join(table)}

Changes made to every picture: rendered to a bitmap, cropped to what is visible, scaled to {CELL["scenes"]} px
({CELL["pretrain"]} px for the pretraining) on the longer side, reduced to {COLOURS["scenes"]} ({COLOURS["pretrain"]})
colours. `index.json` names each picture's set, name, codepoint and licence.

{own} pictures whose name begins with `own-` are drawn by this project (Apache-2.0), because the sets have no dining
table and few sofas, chairs, bottles, screens and bicycles. Those of `dining table` carry the set's plate and those of
`potted plant` the set's plant; these parts keep the licence of their set, as `index.json` says.

Licence texts: `LICENSE-Apache-2.0.txt`, `LICENSE-MIT-fluent.txt`, `LICENSE-CC-BY-4.0.txt`. No author or company named
here endorses this project.
"""
    (target / "ATTRIBUTION.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("icons", type=Path, help="folder with one folder a set")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    sprites = collect(arguments.icons)
    write_atlas(sprites, arguments.target)
    write_attribution(sprites, arguments.target)


if __name__ == "__main__":
    main()
