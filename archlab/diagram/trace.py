"""What a module does, observed: it runs once on the meta device, and every operation becomes a node.

Parts that are modules of their own are one node each, as are the callables passed to a residual scheme. Operations
that only change how numbers are stored (a cast, a copy) become no node, nor do operations that change nothing in
evaluation: an identity, dropout of 0, a norm over nothing, adding 0, multiplying by 1.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.blocks.contracts import Block, Head, Norm, Residual
from archlab.diagram.sketch import ENTRY, Box, Graph, Node
from archlab.diagram.words import box_of, scale
from archlab.model.shapes import shapes_alone

SEQ = 3
KEEPS = {
    "to",
    "type_as",
    "float",
    "half",
    "bfloat16",
    "double",
    "contiguous",
    "clone",
    "detach",
    "dropout",
    "expand_as",
}
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Traced(Tensor):
    """A tensor that knows which node of a graph it came from."""

    tracer: "Tracer"
    node: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        read = list(_traced((args, kwargs)))
        if not read or getattr(func, "__name__", "") in ("__get__", "__set__"):
            return out
        return read[0].tracer.operation(func, out, read, [*args, *kwargs.values()])


def _traced(value: Any) -> Iterator[Traced]:
    if isinstance(value, Traced):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _traced(item)
    elif isinstance(value, Mapping):
        yield from _traced(list(value.values()))


class Tracer:
    """The nodes so far."""

    def __init__(self, module: nn.Module):
        self.nodes: list[Node] = [ENTRY]
        self.parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        self.numbers = [(name, value) for name, value in vars(module).items() if isinstance(value, float)]

    def name_of(self, number: float) -> str:
        """The name of the module's option that has this value; empty unless exactly one has it."""
        names = [name for name, value in self.numbers if value == number]
        return names[0] if len(names) == 1 else ""

    def at(self, tensor: Tensor, node: int) -> Traced:
        traced = tensor.as_subclass(Traced)
        traced.tracer, traced.node = self, node
        return traced

    def add(self, box: Box, read: Iterable[Traced], like: Tensor) -> Traced:
        self.nodes.append(Node(box, tuple(source.node for source in read)))
        return self.at(like, len(self.nodes) - 1)

    def operation(self, func: Any, out: Any, read: list[Traced], arguments: list[Any]) -> Any:
        """The result of an operation, as a node of its own."""
        name = func.__name__.strip("_")
        if name == "linear" and isinstance(out, Tensor):
            return self.add(Box("op", "linear", path=self.parameters.get(id(arguments[1]), "computed")), read, out)
        if isinstance(out, (tuple, list)):
            return type(out)(self.operation(func, item, read, arguments) for item in out)
        if not isinstance(out, Tensor):
            return out
        others = [
            value for value in arguments if isinstance(value, (int, float, Tensor)) and not isinstance(value, Traced)
        ]
        if name in KEEPS and len(read) == 1:
            return self.at(out.view_as(out), read[0].node)
        box = self.arithmetic(name.removeprefix("i").removeprefix("r"), others, len(read)) or Box("op", name)
        if box.label in ("× 1", "+ 0"):
            return self.at(out.view_as(out), read[0].node)
        return self.add(box, read, out)

    def arithmetic(self, name: str, others: list[Any], n_read: int) -> Box | None:
        """A sum, a product, or either with a number or a parameter; None for any other operation."""
        if n_read == 2 and not others and name in ("add", "mul"):
            return Box(name, {"add": "+", "mul": "×"}[name])
        if n_read != 1 or len(others) != 1:
            return None
        value = others[0]
        if name == "mul" and not isinstance(value, Tensor):
            return scale(value, self.name_of(value))
        operand = self.parameters.get(id(value), "tensor") if isinstance(value, Tensor) else f"{value:.4g}"
        signs = {"mul": ("scale", "×"), "div": ("scale", "/"), "truediv": ("scale", "/"), "add": ("op", "+")}
        kind, sign = signs.get(name, ("", ""))
        return Box(kind, f"{sign} {operand}") if kind else None


class OperationRecorder(nn.Module):
    """Replaces a part, and records each call of it."""

    def __init__(self, part: Callable[..., Tensor], box: Box | None):
        super().__init__()
        self.part, self.box = part, box

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if not isinstance(x, Traced):
            return self.part(x, *rest)
        with torch._C.DisableTorchFunctionSubclass():
            out = self.part(x.as_subclass(Tensor), *rest)
        return x.tracer.add(self.box, [x], out) if self.box else x


def residual(scheme: Residual, d_model: int, branches: Iterable[str], path: str = "residual") -> Graph:
    """How a residual scheme joins branches of these names to the stream, and where its norms sit."""
    stand_ins = tuple(OperationRecorder(lambda x: x.clone(), Box("branch", name)) for name in branches)
    return _graph(scheme, d_model, path, stand_ins, enter=scheme.enter)


def branch(part: Block, d_model: int, path: str, *context: Any) -> Graph:
    """What a mixer or a feed-forward network does to its input."""
    return _graph(part, d_model, path, *context)


def head(module: Head, box: Box) -> Graph:
    """What a head does to its input; `box` is the product with its table, whether the table is changed before use or not."""
    changed = replace(box, label=f"{box.label}, rows changed")
    graph = _graph(module, module.in_features, "head")
    table = next(
        (node.box for node in graph if node.box.path in ("weight", "computed") and node.box.label == "linear"), None
    )
    own = table is not None and table.path == "weight"
    return tuple(replace(node, box=box if own else changed) if node.box is table else node for node in graph)


def _graph(
    module: nn.Module, d_model: int, path: str, *arguments: Any, enter: Callable[[Tensor], Tensor] = lambda x: x
) -> Graph:
    module = copy.deepcopy(module).to("meta").eval()
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    _record_parts(module, path, {})
    tracer = Tracer(module)
    x = enter(torch.empty(1, SEQ, d_model, device="meta", dtype=dtype))
    try:
        with torch.no_grad(), shapes_alone():
            out = module(tracer.at(x, 0), *arguments)
    except Exception as error:
        raise UserError(
            f"{type(module).__name__}: cannot be drawn, since it does not run on the meta device:"
            f" {type(error).__name__}: {error}; leave out what depends on values, such as .item()"
        ) from error
    if not isinstance(out, Traced):
        raise UserError(f"{type(module).__name__}: cannot be drawn, since its result does not depend on its input")
    return _ending_with(tuple(tracer.nodes), out.node)


def _record_parts(module: nn.Module, path: str, known: dict[int, OperationRecorder]) -> None:
    """Replaces parts of a module by recorders: its norms, and every part that has no parts of its own."""
    for name, part in list(module.named_children()):
        inside = f"{path}.{name}"
        if isinstance(part, CONTAINERS) or (list(part.children()) and not isinstance(part, Norm)):
            _record_parts(part, inside, known)
            continue
        module._modules[name] = known.setdefault(id(part), OperationRecorder(part, box_of(part, inside)))


def _ending_with(graph: Graph, last: int) -> Graph:
    """The nodes that the result depends on, in order, the result last."""
    needed, waiting = set(), [last]
    while waiting:
        place = waiting.pop()
        if place not in needed:
            needed.add(place)
            waiting += graph[place].reads
    order = sorted(needed | {0})
    at = {place: number for number, place in enumerate(order)}
    return tuple(Node(graph[place].box, tuple(at[read] for read in graph[place].reads)) for place in order)
