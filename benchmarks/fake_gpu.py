"""A GPU that is not there: what training and sampling would ask of one, watched on tensors without values.

``FakeTensorMode`` follows shapes, types, layouts and devices through every operation, and refuses to mix devices;
``Watch`` notes what a GPU would be slow at. A build of torch without CUDA cannot run autograd on such tensors: there,
meta's device guard, which does nothing, stands for that of CUDA, and the backward pass is told that they are meta's.
"""

import ctypes
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.speed import default_step
from dbae.config import TrainConfig
from dbae.diffusion import Process
from dbae.methods import DiffusionModel
from dbae.training import micro_batches

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "device")  # beside views
FLASH_HEAD = 256  # channels of a head up to which a GPU has a fast kernel for attention in half precision
REGISTRY, CUDA_TYPE, META_TYPE = "_ZN3c104impl26device_guard_impl_registryE", 1, 14  # of c10's device guards


class Watch(TorchDispatchMode):
    """While entered, counts operations by name.

    ``kernels`` are all on the device but views; in ``waits`` the host waits for the device, for a value (which is 1
    here) or a copy; ``layouts`` meet images both channels last and contiguous, so that one of them is copied. ``flops``
    are those of products and convolutions. What the optimizer does to all parameters at once counts for each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.as_meta = False  # what autograd takes all tensors' device to be
        self._copied: Any = None  # the last copy in another layout
        self._fresh: list[Tensor] = []  # what the last operation gave that autograd will note
        self.clear()

    def clear(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.layouts: Counter[str] = Counter()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if func is torch.ops.prim.device.default:
            noted = args[0].grad_fn is None and any(args[0] is x for x in self._fresh)
            return torch.device("meta") if self.as_meta or noted else func(*args)
        if func is aten._local_scalar_dense.default:
            self.waits[name] += args[0].is_cuda
            return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 1
        if self.as_meta and kwargs.get("device") == torch.device("meta"):  # autograd makes a tensor like another
            kwargs = {**kwargs, "device": CUDA}
        out = func(*args, **kwargs)
        inputs, outputs = (_tensors(values) for values in ((args, kwargs), out))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        tracked = any(x.requires_grad or any(x is y for y in self._fresh) for x in inputs)
        self._fresh = outputs if tracked and torch.is_grad_enabled() else []
        if any(x.is_cuda for x in inputs + outputs):
            view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
            self.kernels[name] += not view and name not in NO_KERNEL
            crosses = name in ("_to_copy", "copy_") and len({x.device.type for x in inputs[-1:] + outputs}) > 1
            self.waits[name] += crosses and not (kwargs.get("non_blocking") or True in args[2:])
            images = inputs[:1] if name == "convolution" else inputs  # and not its weights
            changed = len({_channels_last(x) for x in images + outputs[:1]} - {None}) > 1
            self.layouts[name] += changed
            if name == "native_group_norm" and inputs[0] is self._copied:  # its own copy
                self.layouts.update({name: 1, "clone": -1})
            self._copied = out if changed and name == "clone" else self._copied
        return out

    @contextmanager
    def to_autograd(self) -> Iterator[None]:
        """While entered, all tensors lie on "meta" for who asks in C++, which is autograd."""
        self.as_meta = True
        try:
            yield
        finally:
            self.as_meta = False

    def found(self) -> dict[str, dict[str, int]]:
        """What was counted, without zeros."""
        return {kind: dict(+getattr(self, kind)) for kind in ("kernels", "waits", "layouts")}


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _channels_last(x: Tensor) -> bool | None:
    """Whether images are channels last; None for what is no image, or in both layouts or neither."""
    layouts = x.ndim == 4 and (x.is_contiguous(memory_format=torch.channels_last), x.is_contiguous())
    return layouts[0] if layouts and layouts[0] != layouts[1] else None


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """While entered, tensors have no values, those on CUDA need no GPU, and what is returned watches them."""
    _guard_cuda()
    watch, backward, attention = Watch(), Tensor.backward, F.scaled_dot_product_attention
    leaves: list[Any] = []  # what autograd noted of parameters, which it notes once

    def watched_backward(*args: Any, **kwargs: Any) -> None:
        with watch.to_autograd():
            backward(*args, **kwargs)

    def tolist(x: Tensor) -> list[float]:
        watch.waits["tolist"] += x.is_cuda  # once, not for every value
        return [1.0] * x.numel()

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype == torch.float32 or q.shape[-1] > FLASH_HEAD:
            return attention(q, k, v)
        return aten._scaled_dot_product_flash_attention(q, k, v)[0]

    def apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """As torch's own, which cannot replace tensors without values."""
        for each in module.modules():
            for name, old in each._parameters.items():
                if old is not None:
                    each._parameters[name] = new = nn.Parameter(function(old.detach()), old.requires_grad)
                    with watch.to_autograd():
                        leaves.append(new.expand_as(new).grad_fn)
            each._buffers.update({name: function(old) for name, old in each._buffers.items() if old is not None})
        return module

    def cudnn_layout(x: Tensor, weight: Tensor, *_: Any) -> torch.memory_format:
        last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
        return torch.channels_last if last else torch.contiguous_format

    with ExitStack() as stack:
        for place, name, function in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (Tensor, "backward", watched_backward),
            (FakeTensor, "tolist", tolist),
            (F, "scaled_dot_product_attention", flash),
            (nn.Module, "_apply", apply),
            (torch._C, "_conv_determine_backend_memory_format", cudnn_layout),
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watch)
        yield watch


def _guard_cuda() -> None:
    """Let autograd ask for a device guard of CUDA, where torch was built without one."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not torch.cuda._is_compiled() and library.exists():
        guards = (ctypes.c_void_p * (META_TYPE + 1)).in_dll(ctypes.CDLL(str(library)), REGISTRY)
        guards[CUDA_TYPE] = guards[META_TYPE]


def fake_model(method: type[DiffusionModel], config: Any) -> DiffusionModel:
    """A model on the fake GPU, for use within ``fake_gpu``. What the host computes of schedules has its values."""
    with _disable_current_modes(), torch.device("meta"):
        model = method(config)
    model._apply(lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA))
    for layer in model.modules():
        if hasattr(layer, "weight_orig"):  # of spectral norms, which compute the weight in every pass
            layer.weight = layer.weight_orig.detach()
    for value in vars(model).values():
        if isinstance(value, Process):
            value.__deepcopy__ = lambda memo, value=value: value  # it has values, of which there are no copies here
    updates = model.updates

    def computed(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return updates(*args, **kwargs)

    model.updates = computed
    return model


def training(model: DiffusionModel, config: TrainConfig) -> Callable[[], object]:
    """A function that takes one step of dbae.training on images in the host's memory."""
    size = model.config.image_size
    images = [torch.empty(n, 3, size, size, dtype=torch.uint8, device="cpu") for n in micro_batches(config, 1)]
    return default_step(model.train(), config, itertools.cycle((batch, None) for batch in images))


def saved_bytes(model: DiffusionModel, images: int) -> int:
    """Bytes that the loss of some images keeps for its gradient, beside parameters and buffers."""
    own = {x.untyped_storage()._cdata for x in itertools.chain(model.parameters(), model.buffers())}
    kept: dict[int, Any] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    size, device = model.config.image_size, next(model.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model.train()(torch.zeros(images, 3, size, size, device=device))  # held until all is counted
    total = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    del loss
    return total
