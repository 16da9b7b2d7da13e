"""Class lists of public data sets, as their files spell them; readers make them readable in prompts."""

from __future__ import annotations

from typing import Final

# fmt: off
# Pascal VOC, in the official order.
VOC_CLASSES: Final = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)

# Zero-shot recognition on COCO; its other 15 classes are in neither part.
COCO_SEEN_48: Final = (
    "apple", "backpack", "banana", "bear", "bed", "bench", "bicycle", "bird", "boat", "book",
    "bottle", "bowl", "broccoli", "car", "carrot", "chair", "clock", "donut", "fork", "frisbee",
    "giraffe", "handbag", "horse", "kite", "laptop", "microwave", "motorcycle", "mouse",
    "orange", "oven", "person", "pizza", "refrigerator", "remote", "sandwich", "sheep", "skis",
    "spoon", "suitcase", "surfboard", "toaster", "toilet", "toothbrush", "train", "truck", "tv",
    "vase", "zebra",
)

# The classes that this split keeps from training.
COCO_UNSEEN_17: Final = (
    "airplane", "bus", "cake", "cat", "couch", "cow", "cup", "dog", "elephant", "keyboard",
    "knife", "scissors", "sink", "skateboard", "snowboard", "tie", "umbrella",
)

# NUS-WIDE, in the order of Concepts81.txt.
NUS_CONCEPTS: Final = (
    "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings",
    "cars", "castle", "cat", "cityscape", "clouds", "computer", "coral", "cow", "dancing",
    "dog", "earthquake", "elk", "fire", "fish", "flags", "flowers", "food", "fox", "frost",
    "garden", "glacier", "grass", "harbor", "horses", "house", "lake", "leaf", "map",
    "military", "moon", "mountain", "nighttime", "ocean", "person", "plane", "plants", "police",
    "protest", "railroad", "rainbow", "reflection", "road", "rocks", "running", "sand", "sign",
    "sky", "snow", "soccer", "sports", "statue", "street", "sun", "sunset", "surf", "swimmers",
    "tattoo", "temple", "tiger", "tower", "town", "toy", "train", "tree", "valley", "vehicle",
    "water", "waterfall", "wedding", "whales", "window", "zebra",
)
# fmt: on
