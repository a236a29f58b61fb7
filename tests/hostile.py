"""Builders of model files: honest small ones of every format, and a corpus of hostile and broken ones.

A pickle is put together from operations by hand, so that it can say what no honest writer would. `BODIES` are pickles
without frame and end; the tests put each into every container that holds pickles.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

MAGIC = bytes.fromhex("8002 8a0a 6cfc9c46f9206aa85019 2e")

# --- an assembler of pickles ------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tupled(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return tupled(*(number(value) for value in values))


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + tupled(*arguments) + b"R"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# --- containers -------------------------------------------------------------------------------------------------------


def torch_zip(body: bytes, storages: dict[str, bytes] | None = None, **extra: bytes) -> bytes:
    """Return a torch archive around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", whole(body))
        for name, data in {**{f"data/{key}": data for key, data in (storages or {}).items()}, **extra}.items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def torch_legacy(body: bytes, storages: dict[str, tuple[int, bytes]] | None = None) -> bytes:
    """Return a torch file before version 1.6 around a pickle; a storage is its count of numbers and their bytes."""
    storages = storages or {}
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    system = table(protocol_version=number(1001), little_endian=b"\x88")
    head = MAGIC + whole(number(1001)) + whole(system) + whole(body) + whole(keys)
    return head + b"".join(struct.pack("<q", count) + data for count, data in storages.values())


def inner_storage(payload: bytes) -> bytes:
    return called(named("torch.storage", "_load_from_bytes"), blob(payload))


def persistent(state: bytes, source: str = "") -> bytes:
    meta = table(
        type=text("class"), version=number(6), module_src=text(source), class_name=text("Generator"), state=state
    )
    return called(named("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda body: whole(body, 4),
    "torch-zip": torch_zip,
    "torch-legacy": torch_legacy,
    "inner-storage": lambda body: whole(table(G_ema=inner_storage(torch_legacy(body))), 4),
    "persistent": lambda body: whole(table(G_ema=persistent(table(weight=body))), 4),
}


def storage_id(count: int, key: str = "0", kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    """Return the reference to a storage as archives have it; older files have a `view`, which may be None."""
    items = (text("storage"), named("torch", kind), text(key), text("cpu"), number(count))
    return tupled(*items, view) + b"Q" if view else tupled(*items) + b"Q"


def tensor_in(storage: bytes, offset: int, shape: bytes, stride: bytes) -> bytes:
    hooks = called(named("collections", "OrderedDict"))
    return called(named("torch._utils", "_rebuild_tensor_v2"), storage, number(offset), shape, stride, b"\x89", hooks)


# --- what a hostile file asks for -------------------------------------------------------------------------------------


def live_bodies(canary: Path) -> dict[str, bytes]:
    """Return pickles that make `canary` appear in a reader that runs what it reads."""
    command = text(f"echo x > '{canary}'")
    code = text(f"open({str(canary)!r}, 'w').close()")
    system, run = named("os", "system"), named("builtins", "exec")
    getattr_ = named("builtins", "getattr")
    module = called(named("importlib", "import_module"), text("os"))
    persistent_state = table(weight=called(system, command))
    memo = text("os") + b"\x94" + text("system") + b"\x94" + b"00" + b"h\x00h\x01\x93" + tupled(command) + b"R"
    partial = called(named("functools", "partial"), system, command)
    compiled = called(named("builtins", "compile"), code, text("x"), text("exec"))
    return {
        "reduce": called(system, command),
        "reduce-exec": called(run, code),
        "eval": called(named("builtins", "eval"), text(f"open({str(canary)!r}, 'w')")),
        "getattr-chain": called(called(getattr_, module, text("system")), command),
        "memo-indirection": memo,
        "partial-chain": called(called(named("functools", "partial"), system), command),
        "partial-call": called(called(named("operator", "methodcaller"), text("__call__")), partial),
        "dotted-name": text("os") + text("path.os.system") + b"\x93" + tupled(command) + b"R",
        "instance": b"(" + command + b"ios\nsystem\n",
        "object": b"(" + system + command + b"o",
        "set-state": persistent_reconstruct(command),
        "runpy": called(named("runpy", "_run_code"), compiled, b"}"),
        "timeit": called(named("timeit", "timeit"), code, text("pass"), named("timeit", "default_timer"), number(1)),
        "bdb": called(called(getattr_, called(named("bdb", "Bdb")), text("run")), code),
        "profile": called(named("cProfile", "run"), code),
        "code": called(called(getattr_, called(named("code", "InteractiveInterpreter")), text("runsource")), code),
        "newobj": named("subprocess", "Popen") + tupled(b"](" + text("sh") + text("-c") + command + b"e") + b"\x81",
        "numpy-runstring": called(named("numpy.testing._private.utils", "runstring"), code, b"}"),
        "in-a-state": persistent_state,
        "before-garbage": called(system, command) + b"0\xff\xff\xff",
    }


def persistent_reconstruct(command: bytes) -> bytes:
    """Call `__setstate__` of a real object: `functools.partial` takes the function and arguments of a state."""
    empty = called(named("functools", "partial"), named("builtins", "print"))
    state = tupled(named("os", "system"), tupled(command), b"}", b"N")
    return called(named("operator", "call"), empty + state + b"b")


ASKED = (
    "posix.system", "nt.system", "builtins.__import__", "builtins.open", "__builtin__.eval", "subprocess.check_output",
    "pip.main", "pip._internal.cli.main.main", "runpy.run_path", "bdb.Bdb", "timeit.Timer", "pty.spawn",
    "asyncio.unix_events._UnixSubprocessTransport._start", "webbrowser.open", "ctypes.CDLL", "shutil.rmtree",
    "copyreg._reconstructor", "copyreg.__newobj__", "copy_reg._reconstructor", "copyreg.add_extension",
    "pickle.loads", "_pickle.loads", "marshal.loads", "types.FunctionType", "types.CodeType", "torch.load",
    "torch.hub.load", "torch.jit.load", "torch.jit.unsupported_tensor_ops.execWrapper", "torch.utils.collect_env.run",
    "torch.utils._config_module.ConfigModule.load_config", "torch.utils.bottleneck.__main__.run_cprofile",
    "torch.distributed.rpc.internal._run_function", "torch.serialization.load", "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_wrapper_subclass", "numpy.load", "numpy.lib.npyio.load", "numpy.core.records.fromfile",
    "numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.getlincoef", "idlelib.run.Executive.runcode",
    "lib2to3.pgen2.grammar.Grammar.loadgrammar", "doctest.debug_script", "ensurepip._run_pip",
    "uuid._get_command_stdout", "logging.config._resolve", "socket.create_connection", "cgitb.lookup",
    "code.InteractiveInterpreter.runcode", "_pyrepl.pager.pipe_pager", "profile.Profile.runctx", "trace.Trace.run",
    "zipimport.zipimporter", "torch.storage._load_from_bytes.__globals__", "collections.OrderedDict.__reduce__",
    "torch_utils.persistence.eval", "torch_utils.persistence._src_to_module",
    "argparse.Namespace.__init__.__globals__", "eigenlens.unpickle.Machine",
)  # fmt: skip


def asking_bodies() -> dict[str, bytes]:
    """Return calls of functions that scanners of pickles are known to overlook."""
    bodies = {}
    for full in ASKED:
        module, _, name = full.rpartition(".")
        bodies[f"asks-{full}"] = called(named(module, name), text("x"))
    return bodies


def odd_bodies() -> dict[str, bytes]:
    """Return pickles that use rare operations, or allowed names in ways that no writer does."""
    ordered = named("collections", "OrderedDict")
    dtype = called(named("numpy", "dtype"), text("O8"), b"\x89", b"\x88")
    array = called(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), numbers(0), text("b"))
    kind = called(named("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
    record = tupled(number(3), text("|"), b"N", b"}", b"}", number(-1), number(-1), number(0))
    return {
        "ext1": b"\x82\x01", "ext2": b"\x83\x01\x01", "ext4": b"\x84\x01\x01\x01\x01", "persid": b"Pos.system\n",
        "inst": b"(iargparse\nNamespace\n", "obj": b"(" + named("argparse", "Namespace") + b"o",
        "newobj-ex": named("argparse", "Namespace") + b")}\x92", "next-buffer": b"\x97", "readonly": b"}\x98",
        "long4": b"\x8b\xff\xff\xff\x7f", "negative-long4": b"\x8b\xff\xff\xff\xff", "dup": b"N2",
        "protocol-0": b"S'os'\n", "get-missing": get(7), "no-mark": b"t", "mark-as-value": b"(", "pop-empty": b"R",
        "append-to-tuple": b")Na", "items-of-list": b"]NNs", "odd-items": b"}(Nu", "members-of-list": b"](N\x90",
        "name-not-text": b"NN\x93", "name-without-end": b"c" + b"x" * 4096, "bad-utf-8": b"\x8c\x02\xff\xfe",
        "build-dict": b"}" + table(x=b"N") + b"b", "build-list": called(ordered) + b"]b",
        "build-odd-keys": named("argparse", "Namespace") + b")\x81" + b"}NNsb",
        "object-array": array + tupled(number(1), numbers(1), dtype, b"\x89", b"](Ne") + b"b",
        "object-scalar": called(named("numpy.core.multiarray", "scalar"), dtype, blob(whole(b"N"))),
        "record-type": kind + record + b"b", "unfilled-shape": called(
            named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), numbers(1 << 40), text("b")),
        "array-too-long": array + tupled(number(1), numbers(1 << 38), kind, b"\x89", blob(b"0000")) + b"b",
        "ndarray-called": called(named("numpy", "ndarray"), numbers(1 << 39)),
        "type-as-value": named("argparse", "Namespace"),
        "bytes-codec": called(named("_codecs", "encode"), text("x"), text("zip")),
        "ordered-of-text": called(ordered, text("abc")), "size-of-text": called(named("torch", "Size"), text("abc")),
        "size-negative": called(named("torch", "Size"), numbers(-1)),
        "unknown-module": called(named("a\x1b[2J", "b")),
        "namespace-called": called(named("argparse", "Namespace"), b"}"),
        "dtype-called": called(named("torch", "float32")),
        "path-of-numbers": called(named("pathlib", "PosixPath"), number(3)),
        "tuple-not": named("torch", "Size") + b"NR",
    }  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Return small pickles that ask for much memory, time or stack."""
    laughs = b"]" + put(0) + b"".join(b"](" + get(i) * 10 + b"e" + put(i + 1) for i in range(12))
    laughs = b"(" + laughs + b"t"
    pairs = b"](" + b"".join(tupled(number(i), b"N") for i in range(2000)) + b"e" + put(0)
    ordered = named("collections", "OrderedDict") + put(1)
    many = b"](" + ordered + b"".join(get(1) + tupled(get(0)) + b"R" for _ in range(2000)) + b"e"
    array = called(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), numbers(0), text("b"))
    kind = called(named("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
    state = tupled(number(1), numbers(1 << 16), kind, b"\x89", get(3))
    copies = b"](" + blob(bytes(1 << 18)) + put(3) + b"".join(array + state + b"b" for _ in range(200)) + b"e"
    payload = torch_legacy(storage_id(1 << 16, view=b"N"), {"0": (1 << 16, bytes(1 << 18))})
    load = named("torch.storage", "_load_from_bytes")
    repeated = b"](" + blob(payload) + put(3) + b"".join(load + tupled(get(3)) + b"R" for _ in range(2000)) + b"e"
    return {
        "laughs": laughs, "deep-lists": b"]" * 60_000 + b"a" * 59_999, "deep-tuples": b")" + b"\x85" * 40_000,
        "deep-key": b"}" + b")" + b"\x85" * 40_000 + b"Ns",
        "deep-member": b"\x8f(" + b")" + b"\x85" * 40_000 + b"\x90",
        "deep-shape": called(named("torch", "Size"), b")" + b"\x85" * 40_000),
        "deep-dicts": b"}" + (text("a") + b"}") * 60_000 + b"s" * 60_000,
        "cycle": b"]" + put(0) + get(0) + b"a", "dict-cycle": b"}" + put(0) + text("a") + get(0) + b"s",
        "operations": b"](" + b"N" * 700_000 + b"e", "sets": b"](" + b"\x8f" * 700_000 + b"e",
        "long-text": b"X\xff\xff\xff\xff", "long-bytes": b"\x8e" + struct.pack("<Q", 1 << 60),
        "long-text-8": b"\x8d" + struct.pack("<Q", (1 << 64) - 1), "frame": b"\x95" + struct.pack("<Q", 1 << 60),
        "bytearray": b"\x96" + struct.pack("<Q", 1 << 50), "long-number": b"\x8a\xff" + b"\x7f" * 255,
        "big-key": b"}" + number(1 << 100) + b"Ns", "repeated-pairs": b"(" + pairs + many + b"t",
        "repeated-arrays": copies, "repeated-storages": repeated,
        "laughing-shape": called(named("torch", "Size"), laughs),
    }  # fmt: skip


def false_tensors(none: bytes = b"") -> dict[str, bytes]:
    """Return tensors, each of them in a storage of 16 numbers under the key 0, that claim what is not there.

    Args:
        none: `b"N"` for files before version 1.6, whose references to storages end with a view or None.
    """
    one = numbers(1)
    view = tupled(text("v"), number(10), number(10))

    def stored(count: int, key: str = "0", kind: str = "FloatStorage", view: bytes = none) -> bytes:
        return storage_id(count, key, kind, view)

    def tensor(count: int, offset: int, shape: bytes, stride: bytes, storage: bytes | None = None) -> bytes:
        return tensor_in(storage or stored(count), offset, shape, stride)

    return {
        "terabytes": tensor(1 << 40, 0, numbers(1 << 40), one), "one-more": tensor(16, 0, numbers(17), one),
        "storage-longer": tensor(17, 0, numbers(16), one), "storage-shorter": tensor(15, 0, numbers(15), one),
        "offset": tensor(16, 16, numbers(1), one), "huge-offset": tensor(16, 1 << 62, numbers(1), one),
        "negative-offset": tensor(16, -1, numbers(1), one), "stride": tensor(16, 0, numbers(2), numbers(16)),
        "negative-stride": tensor(16, 15, numbers(4), numbers(-1)), "negative-size": tensor(16, 0, numbers(-4), one),
        "stride-0-terabytes": tensor(16, 0, numbers(1 << 20, 1 << 20), numbers(0, 0)),
        "product-overflow": tensor(16, 0, numbers(1 << 32, 1 << 32), numbers(1, 1)),
        "empty-overflow": tensor(16, 0, numbers(0, 1 << 39, 1 << 39), numbers(1, 1, 1)),
        "stride-overflow": tensor(16, 0, numbers(2, 2), numbers(1 << 62, 1 << 62)),
        "strides-missing": tensor(16, 0, numbers(4, 4), one),
        "dims": tensor(16, 0, numbers(*[1] * 80), numbers(*[1] * 80)),
        "float-size": tensor(16, 0, tupled(b"G" + struct.pack(">d", 4.0)), one), "no-shape": tensor(16, 0, b"N", one),
        "bool-size": tensor(16, 0, tupled(b"\x88"), one), "missing-key": tensor(16, 0, one, one, stored(16, "1")),
        "outside-key": tensor(16, 0, one, one, stored(16, "../data.pkl")),
        "negative-storage": tensor(16, 0, one, one, stored(-1)),
        "view": tensor(16, 0, one, one, stored(16, view=view)),
        "two-ways": b"(" + tensor(16, 0, one, one) + tensor(16, 0, one, one, stored(8, kind="DoubleStorage")) + b"t",
        "not-a-storage": called(named("torch._utils", "_rebuild_tensor_v2"), b"N", number(0), one, one, b"\x89", b"}"),
        "id-of-a-module": tupled(text("module"), named("torch", "FloatStorage"), text("a.py"), text("source")) + b"Q",
        "id-of-text": text("0") + b"Q", "hooks": called(named("torch._utils", "_rebuild_tensor_v2"), stored(16),
            number(0), one, one, b"\x89", table(x=b"N")),
    }  # fmt: skip


# --- honest files -----------------------------------------------------------------------------------------------------


@contextmanager
def nvidia_modules() -> Iterator[None]:
    """Put stand-ins for NVIDIA's modules where pickle finds names, while a file is written."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util", "dnnlib.tflib", "dnnlib.tflib.network")
    modules = {name: types.ModuleType(name) for name in names}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict, modules["dnnlib.tflib.network"].Network = EasyDict, Network
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("the source of a persistent object was about to run")


class EasyDict(dict):
    __module__ = "dnnlib.util"


class Network:
    __module__ = "dnnlib.tflib.network"

    def __init__(self, **state: object) -> None:
        self.__dict__.update(state)


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickle as an NVIDIA persistent object does."""

    def __init__(self, class_name: str, source: str = "raise SystemExit", **state: object) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple:
        return _reconstruct_persistent_obj, (self.meta,)


def module_state(parameters: dict, buffers: dict, modules: dict, **attributes: object) -> dict:
    return dict(
        _parameters=parameters, _buffers=buffers, _modules=modules, _non_persistent_buffers_set=set(), **attributes
    )


def generator_module(canary: Path | None = None) -> Persistent:
    """Return a small persistent network; its source would write `canary`."""
    source = f"open({str(canary)!r}, 'w')"
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    state = module_state({"weight": weight, "bias": None}, {}, {}, weight_gain=np.float64(0.5))
    fc = Persistent("FullyConnectedLayer", source, **state)
    buffers = {"w_avg": torch.full((4,), 2.0), "unused": None}
    mapping = Persistent("MappingNetwork", source, **module_state({}, buffers, {"fc0": fc}, padding=np.array([1, 2])))
    embed = torch.nn.Embedding(2, 3)
    state = module_state({}, {}, {"mapping": mapping, "embed": embed}, _init_args=(), _init_kwargs=EasyDict(z_dim=4))
    return Persistent("Generator", source, **state)


def nvidia_pickle(canary: Path | None = None, protocol: int = 4) -> bytes:
    with nvidia_modules():
        networks = {name: generator_module(canary) for name in ("G", "G_ema")}
        return pickle.dumps(dict(training_set_kwargs=EasyDict(path="x"), augment_pipe=None, **networks), protocol)


def tf_pickle() -> bytes:
    """Return a TensorFlow pickle of three networks with big-endian and column-major arrays among their variables."""
    kernel = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    variables = [("G_mapping/w", kernel), ("lod", np.array(1.5, dtype=">f4"))]
    part = {"version": 4, "name": "G_mapping", "static_kwargs": {}, "components": {}, "variables": []}
    part["build_module_src"] = "raise SystemExit"
    with nvidia_modules():
        components = EasyDict(mapping=Network(**part))
        whole_ = {**part, "name": "G", "static_kwargs": EasyDict(resolution=64), "variables": variables}
        networks = tuple(Network(**{**whole_, "components": components}) for _ in range(3))
        return pickle.dumps(networks, 4)


def torch_file(tree: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


NETWORK_XML = """<?xml version="1.0"?>
<net name="Mapping" version="10"><layers>
<layer id="0" name="z" type="Parameter" version="opset1"><data shape="1, 4" element_type="f32"/>
<output><port id="0" precision="FP32" names="z"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="1" name="w" type="Const" version="opset1">
<data element_type="f32" shape="2, 3" offset="{offset}" size="{size}"/></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="2"/></edges></net>
"""


def network_xml(offset: int = 4, size: int = 24) -> bytes:
    return NETWORK_XML.format(offset=offset, size=size).encode()


def network_bin() -> bytes:
    return np.arange(7, dtype=np.float32).tobytes()


def safetensors_bytes(header: object, numbers_: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + numbers_
