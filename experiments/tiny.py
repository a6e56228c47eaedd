"""A network that compiles in seconds, for the `--small` forms of experiments, which only show that they work."""

NET = {"arch": "resnet18", "pretrained": False, "body": {"stage_sizes": (1, 1), "width": 8}}
"""Options of `vision.learner` and `vision.unet_learner`: a ResNet of two narrow blocks with random weights."""
HELP = "tiny sizes and a tiny network on any device: does it work?"
