"""Class lists of public data sets, as their files spell them unless said; readers make them readable in prompts."""

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

# COCO's 80 classes, by id.
COCO_CLASSES: Final = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)

# MultiScene-Clean, as its reader reads them out.
MULTISCENE_CLASSES: Final = (
    "apron", "baseball field", "basketball field", "beach", "bridge", "cemetery", "commercial",
    "farmland", "woodland", "golf course", "greenhouse", "helipad", "lake or pond", "oil field",
    "orchard", "parking lot", "park", "pier", "port", "quarry", "railway", "residential",
    "river", "roundabout", "runway", "soccer field", "solar panel", "sparse shrub", "stadium",
    "storage tank", "tennis court", "train station", "wastewater plant", "wind turbine",
    "works", "sea",
)

# MLRSNet, as its reader reads them out.
MLRSNET_CLASSES: Final = (
    "airplane", "airport", "bare soil", "baseball diamond", "basketball court", "beach",
    "bridge", "buildings", "cars", "chaparral", "cloud", "containers", "crosswalk",
    "dense residential area", "desert", "dock", "factory", "field", "football field", "forest",
    "freeway", "golf course", "grass", "greenhouse", "gully", "harbor", "intersection",
    "island", "lake", "mobile home", "mountain", "overpass", "park", "parking lot", "parkway",
    "pavement", "railway", "railway station", "river", "road", "roundabout", "runway", "sand",
    "sea", "ships", "snow", "snowberg", "sparse residential area", "stadium", "swimming pool",
    "tanks", "tennis court", "terrace", "track", "trail", "transmission tower", "trees",
    "water", "wetland", "wind turbine",
)
# fmt: on
