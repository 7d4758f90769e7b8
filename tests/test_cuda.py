"""What can be seen of the CUDA path without a GPU, and the tests that need one."""

import datetime
import signal
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import common
import pytest
import torch
from conftest import sabotage
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
METHODS = """
    simclr --arch resnet18 --reg werank; simclr --cross-view --projector-bn;
    simclr --no-projector --reg lastlayer; simclr --no-projector --fixed-dims 4 --fixed-value inv;
    simclr --reg sparsehead; directclr; directclr --subvector random; barlow --hidden 16 --embedding 8;
    byol --hidden 16 --embedding 8; simclr --projector linear; simclr --projector orthogonal;
    simclr --projector diagonal; simclr --projector lowrank; simclr --projector lowrank-diagonal"""
AUGMENT = partial(common.Augment, 12, blur_p=0.5, solarize_p=0.5)
IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device")
NO_COMPILER = RuntimeError("no compiler here\nwith details")
REFUSED = [  # a GPU's capability, flags, what it raises, the error
    ((7, 5), "--precision bf16", {}, "--precision bf16 .*Tesla T4"),
    ((7, 0), "", {"kernel": NO_KERNEL}, "--device cuda .*no kernel image"),
    ((8, 0), "--compile", {"compiler": NO_COMPILER}, "--compile .*no compiler here"),
]


@pytest.fixture
def backend():
    """One of torch.compile that keeps the graphs it gets, in .graphs, and runs them as they are."""
    torch._dynamo.reset()
    return EagerAndRecordGraphs()


@pytest.mark.parametrize("line", [line.strip() for line in METHODS.split(";")])
def test_the_loss_is_one_graph_whose_value_is_the_eager_one(line, method, backend):
    eager = method(line).loss
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=backend)
    x1, x2 = torch.randn(2, 8, 3, 12, 12)
    values = []
    for loss in (eager, compiled):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            values.append(loss(x1, x2).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    (graph,) = backend.graphs
    exponentials = [node for node in graph.graph.nodes if "matrix_exp" in str(node.target)]
    assert len(exponentials) == ("orthogonal" in line)  # once, not once a view


def test_the_views_are_compiled_without_a_break_and_once_whatever_the_jitters_order(monkeypatch, backend):
    eager, compiled = AUGMENT(), AUGMENT()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=backend))
    compiled.compile()
    for seed in range(12):
        views = (augment(IMAGES, torch.Generator().manual_seed(seed)) for augment in (eager, compiled))
        torch.testing.assert_close(*views)
    assert len(backend.graphs) == 7  # parameters, crop, four operations, finish


def test_the_views_dispatch_little_outside_of_what_is_compiled(monkeypatch):
    names = []

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:  # on CUDA about a launch
                names.append(function.name())
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(torch, "compile", lambda function, **_: _disable_current_modes()(function))
    augment = AUGMENT()
    augment.compile()
    with Dispatched():
        augment(IMAGES, torch.Generator())
    assert sorted(names) == ["aten::rand.generator", "aten::randperm.generator"]


@pytest.fixture
def chosen(monkeypatch):
    """chosen((8, 0), "--compile"): what `prepare` makes of flags on a pretended GPU of that capability, which
    computes nothing. kernel, compiler: an error that it raises."""

    def call(capability, *flags, kernel=None, compiler=None):
        device = SimpleNamespace(device=torch.device("cuda:0"))
        monkeypatch.setattr(torch, "zeros", Mock(return_value=device))
        monkeypatch.setattr(torch, "ones", Mock(side_effect=kernel))
        monkeypatch.setattr(torch, "compile", Mock(return_value=Mock(side_effect=compiler)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
        return common._choose_device(common.arguments("").parse_args(flags))

    return call


@pytest.mark.parametrize("capability, precision", [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_bf16_is_the_default_where_the_gpu_has_it(chosen, capability, precision):
    args = chosen(capability)
    assert (args.device, args.precision, args.compile) == ("cuda:0", precision, True)


@pytest.mark.parametrize("capability, flags, raised, error", REFUSED)
def test_what_a_gpu_can_not_do_is_an_error(chosen, capability, flags, raised, error):
    with pytest.raises(common.UserError, match=error):
        chosen(capability, *flags.split(), **raised)


def test_without_a_compiler_training_is_eager_unless_it_was_asked_for(chosen, capsys):
    assert chosen((8, 0), compiler=NO_COMPILER).compile is False
    assert "no compiler here" in (note := capsys.readouterr().err) and len(note.splitlines()) == 1
    assert chosen((8, 0), "--no-compile", compiler=NO_COMPILER).compile is False
    assert not capsys.readouterr().err


def test_each_process_takes_a_gpu_of_its_own_and_more_of_them_are_an_error(chosen, monkeypatch):
    taken = []
    monkeypatch.setattr(common, "processes", lambda: 4)
    monkeypatch.setattr(common, "process_index", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    chosen((9, 0))
    assert taken == ["cuda:3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(common.UserError, match="4 processes need as many GPUs; there are 3"):
        chosen((9, 0))


def test_processes_exchange_numbers_of_the_host_and_of_gpus(monkeypatch):
    store = Mock()
    init = Mock()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(common, "_STORE", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(common.dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(common.dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr(common.dist, "init_process_group", init)
    common.join_processes()
    assert init.call_args.args == ("cpu:gloo,cuda:nccl",)
    store.set_timeout.assert_called_once_with(datetime.timedelta(days=1))  # NCCL meets through it, later


def test_tf32_is_off_whatever_the_environment_says(tmp_path, forks):
    code = """
cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
print(os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"], cuda.matmul.allow_tf32, cudnn.allow_tf32)
common.warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled")
sys.exit()
"""
    done = forks(tmp_path, "simclr.py", before=code)
    assert (done.out, done.err) == ("1 False False\n", "")


def test_a_signal_ends_a_step_that_compiles_at_once_and_nothing_is_lost(start, tmp_path):
    through = "common.torch.compile = lambda function, **_: function"
    signalled = through + sabotage("info_nce", 1, "os.kill(os.getpid(), signal.SIGTERM)")
    for before, expected in ((signalled, -signal.SIGTERM), (through, 0)):
        done = start("simclr.py --compile --resume", before)
        assert done.returncode == expected, done.err
        assert (tmp_path / "run" / "result.json").exists() == (expected == 0)
        assert not list((tmp_path / "run").glob("*.tmp"))


def small_step(compiled, device="cuda", width=8):
    """training_step of a small SimCLR with the same weights and random numbers each time."""
    # in bfloat16 roundings alone change gradients of this net by a third
    flags = f"--device {device} --precision float32 --lr 0.1 --weight-decay 5e-4 --image-size 16"
    args = common.arguments("").parse_args([*flags.split(), "--compile" if compiled else "--no-compile"])
    torch.manual_seed(0)
    encoder = common.resnet(width=width)
    projector = common.projector("mlp", encoder.dim)
    loss = lambda x1, x2: common.info_nce(*common.embed(encoder, projector, x1, x2))
    return common.training_step(args, encoder, projector, loss)


def test_another_training_in_one_process_is_compiled_too(monkeypatch, backend):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiler(f, dynamic=False, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (8, 16):  # the first's code would not do for the second
            small_step(True, "cpu", width)[0](torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    assert len(backend.graphs) == 2 * 8  # the views' seven, the loss


@needs_cuda
def test_on_cuda_the_compiled_step_equals_the_eager_one():
    before = {key: value.clone() for key, value in small_step(False)[1].state_dict().items()}
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, device="cuda")
    losses = []
    changes = []
    for compiled in (False, True):
        step, model, _, _ = small_step(compiled)
        losses.append(step(images).item())
        changes.append([value.double() - before[key] for key, value in model.state_dict().items()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    errors = [((b - a).norm() / a.norm().clamp(min=1e-8)).item() for a, b in zip(*changes)]
    # the median: a value that rounding takes across a ReLU's 0 changes a tensor or two by more
    assert torch.tensor(errors).median() < 1e-4, errors


@needs_cuda
def test_on_cuda_a_step_launches_little_and_waits_for_nothing():
    step = small_step(True)[0]
    images = torch.randint(0, 256, (20, 32, 3, 16, 16), dtype=torch.uint8, device="cuda")
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
