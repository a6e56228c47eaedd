"""Heat maps of ten photographs, one after the other: `interpret.grad_cam` beside hooks and autograd."""

from functools import partial

from experiments.benchmarks import steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.images import batch, classifier, torch_classifier
from experiments.benchmarks.side import Side


def ours(folder: str, size: int, images: int, classes: int) -> Side:
    import jax

    from jaxfast.interpret import grad_cam
    from jaxfast.pretrained import to_torch_names
    from jaxfast.training.state import init_variables

    module, given = classifier("resnet18", classes), batch(size, images, classes)["image"]
    variables = init_variables(module, jax.random.key(0), given[:1])
    steps.leave(folder, to_torch_names(variables, "resnet18"))

    def run() -> list[float]:
        maps = [grad_cam(module, variables, image) for image in given]
        return [maps[0].probability, maps[-1].values.mean()]

    return Side(run, images, device_memory=steps.jax_memory())


def theirs(folder: str, size: int, images: int, classes: int, channels_last: bool = False) -> Side:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from experiments.benchmarks.torch_models import load

    device = steps.torch_device()
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    model = load(torch_classifier("resnet18", classes), steps.found(folder)).to(device, **layout).eval()
    model.requires_grad_(False)
    given = batch(size, images, classes)["image"].transpose(0, 3, 1, 2)

    def heat(image):
        # the body needs no gradient: only what follows on its last map is differentiated
        last = model.maps(model.pixels(torch.tensor(image[None]).to(device, **layout)))[-1].requires_grad_()
        logits = model.head(last)
        (gradient,) = torch.autograd.grad(logits.max(), last)
        values = torch.relu((last.detach() * gradient.mean((2, 3), keepdim=True)).sum(1))[0]
        return (values / values.max().clamp(min=1e-12)).cpu().numpy(), logits.detach().softmax(1).max().item()

    def run() -> list[float]:
        maps = [heat(image) for image in given]
        return [maps[0][1], maps[-1][0].mean()]

    with FlopCounterMode(display=False) as counter:
        heat(given[0])
    return Side(run, images, {"flops": images * counter.get_total_flops()}, device_memory=steps.torch_memory())


WORKLOADS = {
    "gradcam": Workload(
        "Grad-CAM of ResNet-18 at 224 px, image by image",
        ours,
        {"torch": theirs, "torch channels_last": partial(theirs, channels_last=True)},
        {"size": 224, "images": 10, "classes": 1000},
        {"size": 32, "images": 2, "classes": 10},
        unit="images",
        tolerance=1e-2,
    ),
}
