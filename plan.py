"""The run plan behind the Makefile's tables: which runs are done, how long others take, what a budget fits.

    make plan                     the rows of the tables, done or not, minutes left
    make table2 BUDGET=9m         starts only what will finish within 9 minutes, and says what is next

    python plan.py list results/short/cifar10/simclr/seed0.json …
    python plan.py run results/short/cifar10/simclr/seed0.json -- python simclr.py --epochs 50 …

`run` trains in runs/<scale>/<dataset>/<row>/seed<k>, with a log beside it, and copies the result.json to the
name given. DEADLINE in the environment (seconds since 1970) is a budget's end: a run starts only if it will
end before, by the pace of earlier runs of its scale and recipe; without any it starts, and is stopped
(SIGTERM) at the end, to be continued.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

START = 15  # seconds before the first epoch of a run, which nothing records


def folder_of(result):
    """runs/a/b of results/a/b.json, the folder in which that result is made."""
    return Path("runs", name_of(result))


def a_result(text):
    """The path of a result, as an argument."""
    path = Path(text)
    if not re.fullmatch(r"[^/]+(/[^/]+){3}/seed\d+\.json", text):
        raise argparse.ArgumentTypeError(f"{text} is not results/<scale>/<dataset>/<row>/seed<k>.json")
    return path


def name_of(result):
    """a/b of results/a/b.json."""
    return "/".join(result.with_suffix("").parts[1:])


def read(file):
    """The dict that a JSON file holds, an empty one where it is absent or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def epochs_done(folder):
    """Seconds of training after each epoch, from metrics.jsonl, as far as it is whole."""
    done = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            done.append(float(json.loads(line)["seconds"]))
    return done


def group(result):
    """(scale, recipe) of a result: what says how long its run takes."""
    return result.parts[1], re.match("(sh-resnet50|sh-|)", result.parts[3])[0]


def pace(scale, recipe=""):
    """(seconds of an epoch, of all the rest of a run, epochs) of runs in runs/ of a scale and recipe, on the
    device of the latest, or None. The first epoch, which compiles, counts to the rest."""
    runs = []
    for config in Path("runs", scale).glob("*/*/seed*/config.json"):
        if group(config.parent) != (scale, recipe):
            continue
        folder, content = config.parent, read(config)
        epoch = [b - a for a, b in pairwise([0.0, *epochs_done(folder)])]
        with contextlib.suppress(KeyError, TypeError):  # a damaged configuration tells nothing
            epochs, device = int(content["arguments"]["epochs"]), content["device"]
            if epoch:
                steady, metrics = statistics.median(epoch[1:] or epoch), folder / "metrics.jsonl"
                rest, finished = max(0, epoch[0] - steady) + START, folder / "result.json"
                if finished.exists():  # not since the start: a run may have waited for long to be continued
                    rest += max(0, finished.stat().st_mtime - metrics.stat().st_mtime)
                runs.append((config.stat().st_mtime, device, steady, rest, finished.exists(), epochs))
    if not runs:
        return None
    runs.sort(key=lambda run: run[0])
    same = [run for run in runs if run[1] == runs[-1][1]]
    rest = [run[3] for run in same if run[4]] or [run[3] for run in same]
    return statistics.median(run[2] for run in same), statistics.median(rest), same[-1][5]


def seconds_left(result, known):
    """What the run of this result still needs by the pace known, 0 where it is done, None without a pace."""
    if read(result):
        return 0
    if known is None:
        return None
    epoch, rest, epochs = known
    return epoch * max(0, epochs - len(epochs_done(folder_of(result)))) + rest


def minutes(seconds):
    """Seconds as minutes, a question mark for None."""
    return "?" if seconds is None else f"{seconds / 60:.1f}"


def show(results, brief):
    """Prints the plan, or (brief) the line that ends a make: what is done, what is next."""
    known = {kind: pace(*kind) for kind in set(map(group, results))}
    left = {result: seconds_left(result, known[group(result)]) for result in results}
    waiting = [result for result in results if not read(result)]
    damaged = [result for result in waiting if result.exists()]
    unknown = None if None in left.values() else sum(left.values())
    if not brief:
        for result in results:
            epochs = len(epochs_done(folder_of(result)))
            state = "done" if read(result) else f"epoch {epochs}" if epochs else "-"
            print(f"{name_of(result):48} {state:>10} {minutes(left[result]):>8} min")
    line = f"{len(results) - len(waiting)} of {len(results)} runs done"
    if waiting:
        needs = f"which needs {minutes(left[waiting[0]])} min; all need {minutes(unknown)} min"
        line += f"; next {name_of(waiting[0])}, {needs}"
    print(line + ("" if unknown is not None or not waiting else " (some not timed yet)"))
    if damaged:
        sys.exit(f"plan.py: error: not a result, delete it: {' '.join(map(str, damaged))}")


def copy_lines(stream, log):
    """Lines of a stream of bytes to standard output, as they come, and to the end of a file."""
    with open(log, "ab") as file:
        for line in stream:
            file.write(line)
            file.flush()
            print(line.decode(errors="replace"), end="", flush=True)


def train(result, command):
    """Runs the command unless the budget says no, and puts its result where it belongs; the exit code."""
    deadline = float(os.environ.get("DEADLINE") or "inf")
    needed = seconds_left(result, pace(*group(result))) or 0
    if time.time() + needed > deadline or time.time() + 5 > deadline:
        return 0  # the line at the end says what is next
    print(f"{name_of(result)}: {' '.join(command)}", flush=True)
    log = folder_of(result).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    copying = threading.Thread(target=copy_lines, args=(process.stdout, log), daemon=True)
    copying.start()
    for number in (signal.SIGINT, signal.SIGTERM):  # the run gets them too, saves, and says how it ended
        signal.signal(number, lambda n, _: process.send_signal(n) if n == signal.SIGTERM else None)
    try:
        code = process.wait(None if deadline == float("inf") else max(0.1, deadline - 3 - time.time()))
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return 0
    finally:
        copying.join(10)  # longer only if the run left processes behind
    if code:
        print(f"plan.py: {name_of(result)} ended with exit code {code}, log {log}: {' '.join(command)}",
              file=sys.stderr)
        return code if code > 0 else 128 - code
    if not (folder_of(result) / "result.json").exists():
        print(f"plan.py: {name_of(result)}: no result.json came of {' '.join(command)}", file=sys.stderr)
        return 1
    result.parent.mkdir(parents=True, exist_ok=True)
    temporary = result.with_suffix(f".{os.getpid()}.tmp")
    shutil.copyfile(folder_of(result) / "result.json", temporary)
    os.replace(temporary, result)
    return 0


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True)
    listing, running = actions.add_parser("list"), actions.add_parser("run")
    listing.add_argument("--brief", action="store_true", help="only the last line")
    listing.add_argument("results", nargs="+", type=a_result)
    running.add_argument("result", type=a_result)
    running.add_argument("command", nargs=argparse.REMAINDER, help="-- and what makes the result")
    args = parser.parse_args()
    if args.action == "list":
        with contextlib.suppress(BrokenPipeError):  # make plan | head
            show(list(dict.fromkeys(args.results)), args.brief)
    else:
        command = [word for word in args.command if word != "--"]
        if not command or not shutil.which(command[0]):
            running.error(f"{args.result} needs a command that makes it, after --")
        sys.exit(train(args.result, command))


if __name__ == "__main__":
    main()
