"""Ten steps of a ResNet from one seed: the gradient of the first, the losses of all."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxfast import losses, optim, precision, training
from jaxfast.augment import image_augment
from jaxfast.data.loader import Resident, Streamed
from jaxfast.mesh import data_mesh, to_host
from jaxfast.models import ClassifierHead, ImageClassifier
from jaxfast.models.resnet import BasicBlock, ResNet
from jobs import join


def main(
    out,
    groups=8,
    dropout=0.5,
    augment=True,
    full=False,
    shard=False,
    accumulate=1,
    resident=True,
    steps=10,
    batch_size=128,
    lr=0.01,
):
    body = ResNet((2, 2, 2, 2), BasicBlock) if full else ResNet((1, 1), BasicBlock, width=8)
    head = ClassifierHead(3, hidden=(64,), dropout=dropout)
    module = ImageClassifier(body, head, mean=(127.0,) * 3, std=(64.0,) * 3)
    kind = jnp.zeros(()).dtype  # fp32, or fp64 where it is enabled
    module = precision.cast_module(module, kind)
    task, mesh = small.data(batch_size, augment=False, n=640), data_mesh()
    example = task.train.batch(np.arange(1))
    variables = training.state.init_variables(module, jax.random.key(0), example["image"])
    variables["params"] = jax.tree.map(lambda x: np.asarray(x, kind), variables["params"])
    state = training.create_state(
        module, [example["image"]], optim.hyper_sgd, groups=module.groups, variables=variables, mesh=mesh, shard=shard
    )
    step = training.make_step(
        module,
        losses.cross_entropy,
        optim.hyper_sgd,
        training.trainable(state.params, module.groups),
        augment=image_augment() if augment else None,
        norm_groups=groups,
        shard=mesh if shard else None,
    )
    chunk = training.make_chunk(step, task.batch_size, mesh, resident=resident, shard=shard)
    feed = Resident.put(task.train, task.batch_size, mesh) if resident else Streamed(task.train, task.batch_size, mesh)
    rows = training.hyper_rows(steps, [lr] * 3, 0.0, 0.0)
    seen, first = [], None
    for piece in training.run(state, chunk, feed, rows):
        if first is None:  # the first dispatch is of one step, and a momentum of 0 keeps its gradient
            first = to_host(jax.tree.map(jnp.copy, piece.state.opt_state))
        seen.extend(piece.losses.tolist())
    if jax.process_index() == 0:
        gradient = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(first)])
        np.savez(out, gradient=gradient, losses=np.array(seen))


if __name__ == "__main__":
    main(**join())
