"""The run plan behind the Makefile's tables: which runs are done, how long others take, what a budget fits.

    make plan                               the runs of the tables, done or not, minutes left
    make table2 SCALE=short JOBS=2          trains two rows at a time
    make table2 BUDGET=9m                   starts only what will end within 9 minutes, and says what is next

    python plan.py list table1 table2 --scale short --seeds "0 1" --datasets "cifar10 cifar100"
    python plan.py run table2 --scale mini --seeds 7 --datasets cifar10 --data data --jobs 2 --budget 9m

All rows of the first seed run first. A run trains in runs/<scale>/<dataset>/<row>/seed<k>, with a log beside
it, and its result.json is copied to results/<scale>/<dataset>/<row>/seed<k>.json. A result that is of its row
(rows.mismatch) is skipped; one of an older recipe is trained again. Rows of finetune-table start from other
rows' encoder.pt, which are trained first; their results are in results-finetune/.

By the pace of earlier runs, a run starts only if it will end within the budget. One without a pace starts and
is stopped (SIGTERM) at the end, to be continued by the next call; only the evaluation behind the last epoch
begins anew, so a budget has to be longer. Ctrl-C stops all runs; they save.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import common

import rows


class Run(NamedTuple):
    """A run of the plan: trained in `folder`, its result kept as `result`.

    encoder: whether other runs of the plan start from its encoder.pt, which is then needed too.
    """

    scale: str
    dataset: str
    row: str
    seed: int
    encoder: bool = False

    def __str__(self):
        return f"{self.scale}/{self.dataset}/{self.row}/seed{self.seed}"

    folder = property(lambda self: Path("runs", str(self)))
    result = property(lambda self: Path("results-finetune" if self.base else "results", f"{self}.json"))
    weights = property(lambda self: self.folder / "encoder.pt")

    @property
    def base(self):
        """The run from whose encoder.pt this one starts, or None."""
        row = rows.ROW[self.row].pretrained
        return self._replace(row=row, encoder=True) if row else None


def runs_of(tables, scale, seeds, datasets):
    """The runs of tables in the order of training: by seed, data set, row. Rows of the same run have one."""
    lines = [row for table in tables for row in rows.of(table)]
    bases = {row.pretrained for row in lines}
    wanted = {row.name for row in lines} | bases
    names = dict.fromkeys(rows.run_of(name) for name in rows.ROW if name in wanted)
    places = product(seeds, datasets, names)
    return [Run(scale, dataset, name, seed, name in bases) for seed, dataset, name in places]


# ------------------------------------------------------------------------------------------- what is there


DAMAGED = (*common.ODD, OSError)  # what reading a file may raise that is absent, damaged or of another kind


def read(file):
    """The dict that a JSON file holds, an empty one where it is absent or damaged."""
    with contextlib.suppress(common.UserError):
        content = common.read_json(file)
        return content if isinstance(content, dict) else {}
    return {}


def fault(run, config):
    """Why a configuration is not that of a run, as text; "" if it is."""
    return rows.mismatch(config, run.row, run.scale, run.dataset)


def state(run):
    """Of a run's result: None if there is none, "" if it is the run's, else what is wrong with it."""
    if not run.result.exists() or needed(run) and (outdated(run) or not run.weights.exists()):
        return None
    content = read(run.result)
    why = fault(run, content.get("config"))
    return why and f"{run.result} is {f'of an older recipe ({why})' if content else 'damaged'}"


def needed(run):
    """Whether a run that starts from this one's encoder.pt is still to be trained."""
    later = [row.name for row in rows.of(rows.FT) if run.encoder and row.pretrained == run.row]
    return any(state(run._replace(row=name, encoder=False)) != "" for name in later)


def outdated(run):
    """Why what the run's folder holds can't be continued as the run, as text; "" if it can."""
    config = read(run.folder / "config.json")
    why = fault(run, config) if config else ""
    if config and not why and run.base:
        same = config["arguments"]["pretraining"] == read(run.base.folder / "config.json")
        why = "" if same else "its encoder is another"
    return why


def epochs_done(run):
    """Epochs in the run's folder that it can go on from."""
    return 0 if outdated(run) else len(epoch_ends(run.folder))


def in_use(folder):
    """Whether a process holds the folder's lock: a run goes on for a while when its plan is killed."""
    if not folder.is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: a file system without locks
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


# --------------------------------------------------------------------------------------- how long runs take

START = 15  # seconds before the first epoch of a run, which nothing records
ALIKE = ("arch", "width", "stem", "image_size", "batch_size", "train_size", "labels")


def epoch_ends(folder):
    """Seconds of training at the end of each epoch, from metrics.jsonl, as far as it is whole."""
    ends = []
    with contextlib.suppress(*DAMAGED):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            ends.append(float(json.loads(line)["seconds"]))
    return ends


def changed(file):
    """When a file was last written, 0 of one that is gone: other jobs start anew meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.getmtime(file)
    return 0.0


def kinds(script, arguments):
    """What runs of one pace share, beside the device: all of it, and, if that is unknown, most of it."""
    most = (script, Path(arguments["dataset"]).stem, *(arguments.get(key) for key in ALIKE))
    return (*most, arguments.get("reg"), arguments.get("projector")), most


def paces():
    """{one of `kinds`: (seconds of an epoch, of the rest of a run)}, medians of runs on the latest device.

    The first epoch, which compiles, counts to the rest.
    """
    timed = {}
    for file in sorted(Path("runs").glob("*/*/*/seed*/config.json"), key=changed):
        ends = [0.0, *epoch_ends(file.parent)]
        epochs = [end - start for start, end in pairwise(ends)]
        with contextlib.suppress(*DAMAGED):  # or no epoch: no pace
            steady = median(epochs[1:] or epochs)
            rest = START + max(0, epochs[0] - steady)
            evaluating = changed(file.with_name("metrics.jsonl")) - changed(file) - ends[-1]
            if 0 < evaluating < ends[-1] / 2:  # more: it has waited to be continued
                steady += evaluating / len(epochs)
            result = file.with_name("result.json")
            if result.exists():
                rest += max(0, changed(result) - changed(file.with_name("metrics.jsonl")))
            config = read(file)
            one = (config["device"], result.exists(), steady, rest)
            for key in kinds(config["script"], config["arguments"]):
                timed.setdefault(key, []).append(one)
    found = {}
    for key, alike in timed.items():
        same = [one for one in alike if one[0] == alike[-1][0]]
        finished = [one for one in same if one[1]]
        found[key] = (median(one[2] for one in same), median(one[3] for one in finished or same))
    return found


def seconds_left(run, known):
    """Estimated seconds left: 0 if done, None if nothing comparable was timed. known: the paces."""
    if state(run) == "":
        return 0
    arguments = rows.arguments(run.row, run.scale, run.dataset)
    wanted = kinds(rows.command(run.row, run.scale, run.dataset)[0], arguments)
    pace = next((known[key] for key in wanted if key in known), None)
    return pace and pace[0] * max(0, arguments["epochs"] - epochs_done(run)) + pace[1]


def minutes(seconds):
    """Seconds as minutes, a question mark for None."""
    return "?" if seconds is None else f"{seconds / 60:.1f}"


def show(runs, brief=False):
    """Prints the plan, or (brief) only its end: what is wrong, how many runs are done, what is next."""
    known = paces()
    left = {run: seconds_left(run, known) for run in runs}
    waiting = [run for run in runs if left[run] != 0]
    for run in () if brief else runs:
        there = f"epoch {epochs_done(run)}" if epochs_done(run) else "-"
        print(f"{run!s:48} {there if run in waiting else 'done':>10} {minutes(left[run]):>8} min")
    for why in filter(None, map(state, waiting)):
        print(f"{why}: to be trained again")
    line = f"{len(runs) - len(waiting)} of {len(runs)} runs done"
    if waiting:
        total = None if None in left.values() else sum(left.values())
        first = minutes(left[waiting[0]])
        line += f"; next {waiting[0]}, which needs {first} min; all need {minutes(total)} min, one by one"
        line += "" if total else " (some not timed yet)"
    print(line, flush=True)


# ------------------------------------------------------------------------------------------------- training


def say(text):
    """Prints a line in one piece, as jobs print at the same time; to nobody if the reader has left."""
    with contextlib.suppress(OSError):
        print(f"{text}\n", end="", flush=True)


class Trainer:
    """Trains runs, `jobs` at a time, until the deadline (seconds since 1970) or a signal."""

    def __init__(self, data, jobs=1, gpus=1, deadline=float("inf")):
        self.data = data
        self.python = [sys.executable]
        if gpus > 1:
            self.python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        self.jobs = jobs
        self.deadline = deadline
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // jobs)))
        self.each = {}  # run: future of its exit code
        self.processes = []
        self.ended = False  # nothing starts any more
        self.signal = 0

    def end(self, number=0, _=None):
        """Ends the runs, which save, and starts no other. A signal's handler, and what the deadline does."""
        self.ended = True
        self.signal = number or self.signal
        for process in self.processes:
            process.terminate()

    def train_all(self, runs):
        """The exit code of all: that of the first run that failed, or of the signal."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.end)
        with ThreadPoolExecutor(self.jobs) as pool:
            for run in runs:  # in this order: what a run starts from has begun before it
                self.each[run] = pool.submit(self.train, run)
            limited = self.deadline < float("inf")
            seconds = max(0.1, self.deadline - 3 - time.time()) if limited else None
            wait(self.each.values(), seconds, FIRST_EXCEPTION)  # such as a folder that can't be written
            self.end()
        codes = [128 + self.signal] if self.signal else [one.result() for one in self.each.values()]
        return next(filter(None, codes), 0)

    def fits(self, run):
        """Whether a run is still to be trained and, by its pace, ends before the deadline."""
        needed = 0 if self.ended else seconds_left(run, paces())
        return needed != 0 and time.time() + max(5, needed or 0) <= self.deadline

    def wait_for(self, run):
        """Waits while another process has the run's folder."""
        if not self.ended and in_use(run.folder):
            say(f"{run} is in use by another process: waiting")
        while not self.ended and in_use(run.folder):
            time.sleep(1)

    def command(self, run, mode):
        """The words that train a run; mode: --resume or --overwrite."""
        python = self.python[:1] if run.base else self.python
        script = rows.command(run.row, run.scale, run.dataset, self.data)
        weights = [str(run.base.weights)] if run.base else []
        return [*python, *script, "--seed", str(run.seed), "--out", str(run.folder), mode, *weights]

    def train(self, run):
        """Trains a run, unless it is done or the budget says no, and keeps its result. Its exit code."""
        if run.base and (self.each[run.base].result() or state(run.base) != ""):
            return 0  # the end of that run has said why
        if not self.fits(run):
            return 0  # the line at the end says what is next
        self.wait_for(run)
        if not self.fits(run):
            return 0
        log = run.folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        old = outdated(run)
        if state(run) or old:
            say(f"{state(run) or f'{run.folder} is of an older recipe ({old})'}: trained again")
        lost = run.encoder and (run.folder / "result.json").exists() and not run.weights.exists()
        if lost:  # evaluated again, it is written again
            (run.folder / "result.json").unlink()
        command = self.command(run, "--overwrite" if old else "--resume")
        line = shlex.join(command)
        say(f"{run}: {line}")
        prefix = f"{run}: " if self.jobs > 1 else ""
        before = log.stat().st_size if log.exists() else 0
        code = self.execute(command, log, prefix)
        why = log.read_bytes()[before:].rpartition(b" error: ")[2] if code == 2 and lost else b""
        if b"--overwrite" in why and not self.ended:  # its checkpoint does not help; a full disk is no reason
            code = self.execute(self.command(run, "--overwrite"), log, prefix)
        if code == 0 and (run.folder / "result.json").exists():
            keep(run)
            return 0
        if code in (130, 143) and not self.ended:
            time.sleep(1)  # Ctrl-C may reach a run before the plan
        if self.ended and (code in (130, 143) or len(self.python) > 1):  # torchrun has a code of its own
            say(f"{run} stopped with exit code {code}")
            return 0
        if code == 2 and in_use(run.folder):  # another plan was faster
            return self.train(run)
        common.complain(f"plan.py: {run} ended with exit code {code}, log {log}: {line}")
        self.ended |= code == 2  # bad input: it would be the next run's too
        return code or 1

    def execute(self, command, log, prefix):
        """Runs a command; shows its lines with a prefix, adds them to a log. Its exit code, as a shell's."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        refused = False  # bad input, which torchrun's own exit code does not tell
        with open(log, "ab", buffering=0) as file:
            process = subprocess.Popen(command, env=self.environment, **pipes)
            self.processes.append(process)
            if self.ended:  # since it was last asked
                process.terminate()
            for line in process.stdout:
                refused |= b"(exitcode: 2)" in line
                say(prefix + line.decode(errors="replace").removesuffix("\n"))
                with contextlib.suppress(OSError):  # a full disk, which the run tells
                    file.write(line)
        code = 2 if process.wait() == 1 and refused else process.returncode
        return code if code >= 0 else 128 - code


def keep(run):
    """Copies a run's result.json to where it belongs, unless it was trained for its encoder only."""
    if run.encoder and state(run._replace(encoder=False)) == "":
        return
    run.result.parent.mkdir(parents=True, exist_ok=True)
    common.write(run.result, (run.folder / "result.json").read_bytes())


# ---------------------------------------------------------------------------------------------- command line


def duration(text):
    """An argparse type: seconds of 90s, 9m, 2h or 90."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no duration, such as 90s, 9m or 2h")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def seeds(text):
    """An argparse type: whole numbers."""
    if not re.fullmatch(r"( *\b(0|[1-9]\d{0,8}))+ *", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers, such as 0 1 2")
    return list(dict.fromkeys(map(int, text.split())))


def folder(text):
    """An argparse type: a folder's name."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    return os.path.expanduser(text)


def datasets(text):
    """An argparse type: names of data sets."""
    if not text.split() or set(text.split()) - set(rows.DATASETS):
        raise argparse.ArgumentTypeError(f"{text!r} must be of {' '.join(rows.DATASETS)}")
    return list(dict.fromkeys(text.split()))


def main():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("action", choices=("list", "run"))
    tables = (*rows.TABLES, rows.FT)
    add("tables", nargs="+", choices=tables, metavar="table", help=", ".join(tables))
    add("--scale", choices=rows.SCALES, default="paper", help="size and length of runs (paper)")
    add("--seeds", type=seeds, default="0 1 2", help="(0 1 2)")
    add("--datasets", type=datasets, default="cifar10 cifar100", help="(cifar10 cifar100)")
    add("--data", default="data", type=folder, help="the folder of the data sets (data)")
    add("--jobs", type=int, choices=range(1, 9), default=1, metavar="N", help="runs at a time (1)")
    add("--gpus", type=int, choices=range(1, 65), default=1, metavar="N", help="that share each run (1)")
    add("--budget", type=duration, default=float("inf"), help="ends after 90s, 9m or 2h (never)")
    add(
        "--since",
        type=common.number(float, 0, 2**40),
        default=time.time(),
        help="when the budget began, as date +%%s says (now)",
    )
    args = parser.parse_args()
    runs = runs_of(args.tables, args.scale, args.seeds, args.datasets)
    code = 0
    if args.action == "run":
        code = Trainer(args.data, args.jobs, args.gpus, args.since + args.budget).train_all(runs)
    with contextlib.suppress(BrokenPipeError):  # make plan | head
        show(runs, brief=args.action == "run")
    sys.exit(code)


if __name__ == "__main__":
    common.run(main)
