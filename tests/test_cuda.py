"""What can be seen of the CUDA path without a GPU, and the tests that need one."""

import datetime
import signal
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import common
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


METHODS = [
    "simclr --arch resnet18 --reg werank",
    "simclr --cross-view --projector-bn",
    "simclr --no-projector --reg lastlayer",
    "simclr --no-projector --fixed-dims 4 --fixed-value inv",
    "simclr --reg sparsehead",
    "directclr",
    "directclr --subvector random",
    "barlow --hidden 16 --embedding 8",
    "byol --hidden 16 --embedding 8",
]
KINDS = ("linear", "orthogonal", "diagonal", "lowrank", "lowrank-diagonal")


@pytest.fixture
def graphs():
    """made: the graphs of what is compiled with backend=graphs.backend, which runs them as they are."""
    torch._dynamo.reset()
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph

    return SimpleNamespace(made=made, backend=backend)


@pytest.mark.parametrize("line", [*METHODS, *(f"simclr --projector {kind}" for kind in KINDS)])
def test_the_loss_is_one_graph_whose_value_is_the_eager_one(line, method, graphs):
    eager = method(line).loss
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=graphs.backend)
    x1, x2 = torch.randn(2, 8, 3, 12, 12)
    values = []
    for loss in (eager, compiled):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            values.append(loss(x1, x2).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    (graph,) = graphs.made
    exponentials = [node for node in graph.graph.nodes if "matrix_exp" in str(node.target)]
    assert len(exponentials) == ("orthogonal" in line)  # once, not once a view


AUGMENT = partial(common.Augment, 12, blur_p=0.5, solarize_p=0.5)
IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
PARTS = 7  # of the views: parameters, crop, four operations, finish


def test_the_views_are_compiled_without_a_break_and_once_whatever_the_jitters_order(monkeypatch, graphs):
    eager, compiled = AUGMENT(), AUGMENT()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=graphs.backend))
    compiled.compile()
    for seed in range(12):
        views = (augment(IMAGES, torch.Generator().manual_seed(seed)) for augment in (eager, compiled))
        torch.testing.assert_close(*views)
    assert len(graphs.made) == PARTS


class Dispatched(TorchDispatchMode):
    """Collects the names of the operations that are no views: on CUDA about a launch each."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_the_views_dispatch_little_outside_of_what_is_compiled(monkeypatch):
    calls = []

    def compiled(function, **_):
        def call(*args):
            calls.append(function)
            with _disable_current_modes():
                return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    augment = AUGMENT()
    augment.compile()
    with Dispatched() as dispatched:
        augment(IMAGES, torch.Generator())
    assert sorted(dispatched.names) == ["aten::rand.generator", "aten::randperm.generator"]
    assert len(calls) == PARTS


@pytest.fixture
def gpu(monkeypatch):
    """gpu((8, 0)): a pretended GPU of that capability, on which nothing is computed but what `prepare` tries
    first. kernel, compiler: an error that it raises."""

    def pretend(capability, kernel=None, compiler=None):
        zeros = torch.zeros(1)
        device = SimpleNamespace(device=torch.device("cuda:0"))
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: device)
        monkeypatch.setattr(torch, "ones", Mock(return_value=zeros, side_effect=kernel))
        monkeypatch.setattr(torch, "compile", lambda *_, **__: Mock(side_effect=compiler))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")

    return pretend


def computation(*flags):
    return common._choose_device(common.arguments("").parse_args(flags))


@pytest.mark.parametrize(
    "capability, precision", [((7, 5), "float32"), ((8, 0), "bf16"), ((8, 6), "bf16"), ((9, 0), "bf16")]
)
def test_bf16_is_the_default_where_the_gpu_has_it(gpu, capability, precision):
    gpu(capability)
    args = computation()
    assert (args.device, args.precision, args.compile) == ("cuda:0", precision, True)


NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device")
NO_COMPILER = RuntimeError("no compiler here\nwith details")
REFUSED = [  # the GPU, flags, the error
    ({"capability": (7, 5)}, ("--precision", "bf16"), "--precision bf16 .*Tesla T4"),
    ({"capability": (7, 0), "kernel": NO_KERNEL}, (), "--device cuda .*no kernel image"),
    ({"capability": (8, 0), "compiler": NO_COMPILER}, ("--compile",), "--compile .*no compiler here"),
]


@pytest.mark.parametrize("pretended, flags, error", REFUSED)
def test_what_a_gpu_can_not_do_is_an_error(gpu, pretended, flags, error):
    gpu(**pretended)
    with pytest.raises(common.UserError, match=error):
        computation(*flags)


def test_without_a_compiler_training_is_eager_unless_it_was_asked_for(gpu, capsys):
    gpu((8, 0), compiler=NO_COMPILER)
    assert computation().compile is False
    assert "no compiler here" in (note := capsys.readouterr().err) and len(note.splitlines()) == 1
    assert computation("--no-compile").compile is False and not capsys.readouterr().err


def test_each_process_takes_a_gpu_of_its_own_and_more_of_them_are_an_error(gpu, monkeypatch):
    gpu((9, 0))
    taken = []
    monkeypatch.setattr(common, "processes", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    computation()
    assert taken == ["cuda:3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(common.UserError, match="4 processes need as many GPUs; there are 3"):
        computation()


@pytest.mark.parametrize("cuda, backend", [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_processes_exchange_numbers_of_the_host_and_of_gpus(cuda, backend, monkeypatch):
    named = []
    store = Mock()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(common, "_STORE", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(common.dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(common.dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr(common.dist, "init_process_group", lambda name, **_: named.append(name))
    common.join_processes()
    assert named == [backend]
    store.set_timeout.assert_called_once_with(datetime.timedelta(days=1))  # NCCL meets through it, later


def test_tf32_is_off_whatever_the_environment_says(tmp_path, forks):
    code = """
import warnings
cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
print(os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"], cuda.matmul.allow_tf32, cudnn.allow_tf32)
warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.")
sys.exit()
"""
    done = forks(tmp_path, "simclr.py", before=code)
    assert (done.out, done.err) == ("1 False False\n", "")


def test_a_signal_ends_a_step_that_compiles_at_once_and_nothing_is_lost(start, tmp_path):
    signalled = """
def compiled(function, **_):
    def call(*args):
        if function.__name__ == "loss_of":
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args)
    return call
common.torch.compile = compiled
"""
    through = "common.torch.compile = lambda function, **_: function"
    for before, expected in ((signalled, -signal.SIGTERM), (through, 0)):
        done = start("simclr.py --compile --resume", before)
        assert done.returncode == expected, done.err
        assert (tmp_path / "run" / "result.json").exists() == (expected == 0)
        assert not list((tmp_path / "run").glob("*.tmp"))


# ------------------------------------------------------------------------------------------------ on a GPU


def small_step(compiled):
    """training_step of a small SimCLR on CUDA with the same weights and random numbers each time."""
    # in bfloat16 roundings alone change gradients of this net by a third
    flags = "--device cuda --precision float32 --lr 0.1 --weight-decay 5e-4 --image-size 16"
    args = common.arguments("").parse_args([*flags.split(), "--compile" if compiled else "--no-compile"])
    torch.manual_seed(0)
    encoder = common.resnet(width=8)
    projector = common.projector("mlp", encoder.dim)

    def loss(x1, x2):
        return common.info_nce(*common.embed(encoder, projector, x1, x2))

    return common.training_step(args, encoder, projector, loss)


def batches(count):
    shape = (count, 32, 3, 16, 16)
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cuda")


@needs_cuda
def test_on_cuda_the_compiled_step_equals_the_eager_one():
    before = {key: value.clone() for key, value in small_step(False)[1].state_dict().items()}
    losses = []
    changes = []
    for compiled in (False, True):
        step, model, _, _ = small_step(compiled)
        losses.append(step(batches(1)[0]).item())
        changes.append({key: value.double() - before[key] for key, value in model.state_dict().items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    errors = [
        ((changes[1][key] - change).norm() / change.norm().clamp(min=1e-8)).item()
        for key, change in changes[0].items()
    ]
    # the median: a value that rounding takes across a ReLU's 0 changes a tensor or two by more
    assert torch.tensor(errors).median() < 1e-4, errors


@needs_cuda
def test_on_cuda_a_step_launches_little_and_waits_for_nothing():
    step = small_step(True)[0]
    images = batches(20)
    for x in images:
        step(x)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for x in images:
                step(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    count = {event.key: event.count / len(images) for event in profile.key_averages()}
    kinds = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpy", "cudaMemset")
    assert 0 < sum(n for key, n in count.items() if key.startswith(kinds)) <= 45, count
    assert count["cudaGraphLaunch"] == 2, count
