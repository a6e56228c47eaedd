"""The state of a training run, and which part of the parameters it trains."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jaxfast.mesh import replicated, state_sharding
from jaxfast.optim import label_by_prefix
from jaxfast.precision import LossScale

# Purposes that are folded into the seed key (0 is the order of the data): one stream of keys for each use.
AUGMENT, DROPOUT, INIT, TTA = 1, 2, 3, 4

Groups = Sequence[Sequence[str]]


def key_for(key: Key[Array, ""], purpose: int, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of one purpose at one step: `fold_in(fold_in(key, purpose), step)`."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), step)


class TrainState(struct.PyTreeNode):
    """All that a run needs to go on: a checkpoint is this and nothing else.

    `params`: nested dict; `model_state`: the other collections of the model's variables (batch statistics);
    `opt_state`: the optimizer's state for the trainable parameters only; `key`: the seed key, never advanced;
    `loss_scale`: None unless gradients are computed in fp16.
    """

    step: Int[Array, ""]
    params: dict
    model_state: dict
    opt_state: optax.OptState
    key: Key[Array, ""]
    loss_scale: LossScale | None = None

    @property
    def variables(self) -> dict:
        return {"params": self.params, **self.model_state}


@jax.jit
def copy_state(state: TrainState) -> TrainState:
    """The same values in memory of their own, laid out alike; a training program takes the memory that it is given."""
    return jax.tree.map(jnp.copy, state)


class Trainable(struct.PyTreeNode):
    """Which parameters are trained, and the learning-rate group of each.

    `paths`: "/"-joined paths of the trained leaves; `frozen`: path prefixes of the frozen groups, whose norm layers
    use and keep their running statistics unless `train_norm`; `labels`: nested dict of group numbers for the trained
    leaves.
    """

    paths: frozenset[str] = struct.field(pytree_node=False)
    frozen: tuple[str, ...] = struct.field(pytree_node=False)
    labels: dict = struct.field(pytree_node=False)
    n_groups: int = struct.field(pytree_node=False)
    train_norm: bool = struct.field(pytree_node=False, default=True)

    def split(self, params: dict) -> tuple[dict, dict]:
        """(trained, frozen) parts of `params`, nested dicts that share no leaf."""
        flat = flatten_dict(params, sep="/")
        trained = {path: leaf for path, leaf in flat.items() if path in self.paths}
        frozen = {path: leaf for path, leaf in flat.items() if path not in self.paths}
        return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")

    @staticmethod
    def merge(trained: dict, frozen: dict) -> dict:
        """The inverse of `split`."""
        return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))


def trainable(params: dict, groups: Groups | None = None, *, freeze_to: int = 0, train_norm: bool = True) -> Trainable:
    """The parameters of `groups[freeze_to:]`, and with `train_norm` the norm scales and biases of the frozen groups.

    `groups`: path prefixes for each group, first layers first (None: one group of everything). Negative `freeze_to`
    counts from the end: -1 trains the last group only. Source of `train_norm=True`: fastai's Optimizer.freeze_to.
    ValueError if `freeze_to` names no group.
    """
    n_groups = len(groups) if groups else 1
    if freeze_to not in range(-n_groups, n_groups):
        raise ValueError(
            f"freeze_to({freeze_to!r}) names none of the model's {n_groups} parameter groups: "
            f"use {-n_groups}..{n_groups - 1}"
        )
    first = freeze_to % n_groups
    labels = label_by_prefix(groups)(params) if groups else jax.tree.map(lambda _: 0, params)
    flat = flatten_dict(labels, sep="/")

    def is_norm(path: str) -> bool:
        layer, _, _ = path.rpartition("/")
        return f"{layer}/scale" in flat

    paths = frozenset(path for path, group in flat.items() if group >= first or (train_norm and is_norm(path)))
    trained = unflatten_dict({path: flat[path] for path in paths}, sep="/")
    frozen = tuple(prefix for group in (groups or ())[:first] for prefix in group)
    return Trainable(paths, frozen, trained, n_groups, train_norm)


def create_state(
    module: nn.Module,
    example: Sequence[Array],
    optimizer: Callable,
    *,
    groups: Groups | None = None,
    part: Trainable | None = None,
    variables: dict | None = None,
    loss_scale: LossScale | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    shard: bool = False,
    abstract: bool = False,
) -> TrainState:
    """A fresh state: variables from `module.init` on `example` (a batch of each input), replaced by `variables` if
    given.

    `optimizer` is a function (hypers, labels=) -> GradientTransformation such as `jaxfast.optim.hyper_adamw`;
    `part` is what is trained (default: everything, in the learning-rate groups `groups`). The state lies on every
    device of `mesh` (default: on one), with `shard` split over them as `mesh.state_sharding` says, and is made there:
    no device ever holds all of it. `abstract`: shapes, types and shardings only, to compile a program ahead of time.
    """

    def build(example, variables):
        key = jax.random.key(seed)
        if variables is None:
            variables = module.init(key_for(key, INIT), *example)
        else:  # copied, because the first training step takes the memory of the state over
            variables = jax.tree.map(jnp.copy, variables)
        params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        opt_state = _opt_state(optimizer, part or trainable(params, groups), params)
        return TrainState(jnp.int32(0), params, model_state, opt_state, key, loss_scale)

    args = list(example), jax.device_get(variables)
    if abstract:
        shapes = jax.eval_shape(build, *args)
        place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(place, shapes, state_sharding(shapes, mesh, shard=shard))
    return _made(build, mesh, shard, *args)


def init_variables(module: nn.Module, key: Key[Array, ""], *example: Array) -> dict:
    """The module's own initial variables from the seed key, as one compiled program."""
    return _made(lambda key, *example: module.init(key_for(key, INIT), *example), None, False, key, *example)


def fresh_opt_state(
    optimizer: Callable, part: Trainable, params: dict, *, mesh: Mesh | None = None, shard: bool = False
) -> optax.OptState:
    """The optimizer's state before its first step, for the trained part of `params`; it depends on no
    hyper-parameter. `mesh` and `shard` as for `create_state`."""
    return _made(lambda params: _opt_state(optimizer, part, params), mesh, shard, params)


def _opt_state(optimizer: Callable, part: Trainable, params: dict) -> optax.OptState:
    hypers = {"lr": jnp.zeros(part.n_groups), "momentum": jnp.float32(0.9), "weight_decay": jnp.float32(0.0)}
    return optimizer(hypers, labels=lambda _: part.labels).init(part.split(params)[0])


def _made(build: Callable, mesh: Mesh | None, shard: bool, *args):
    """The result of `build(*args)` as one compiled program, laid out on `mesh`."""
    layout = None if mesh is None else replicated(mesh)
    if shard:
        layout = state_sharding(jax.eval_shape(build, *args), mesh, shard=True)
    # It runs once and is all random bits, which LLVM takes long to optimize: 10 s of 11 for a small ResNet on CPU.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(build, out_shardings=layout, compiler_options=options)(*args)
