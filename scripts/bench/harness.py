"""What both duels need: rounds in turn, readings of the machine beside every figure, a results file, tables.

Only Python's own library, so that any Python runs it.
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# A measurement is disturbed when a reading beside it is below this share of the run's highest.
CLEAN = 0.85


def add_arguments(parser, contenders):
    """The options that both duels have."""
    parser.add_argument("work", type=pathlib.Path, help="the folder that setup.sh has filled")
    parser.add_argument("--muster", required=True, type=pathlib.Path, help="the binary, built with --release")
    parser.add_argument("--model", default="qwen2.5-0.5b", help="which of the models in WORK (default: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=contenders, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--ours", default=contenders[0], help="the contender that the others are compared with")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender has its turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each contender")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one contender may take in a round")
    parser.add_argument("--results", type=pathlib.Path, help="JSON lines are added here (default: WORK/results.jsonl)")
    parser.add_argument("--all", action="store_true", help="compare disturbed measurements too")
    parser.add_argument(
        "--raise", dest="nice", type=int, metavar="N",
        help="raise this session above all others, to -N (1 to 20; needs root): nice alone orders what runs within a "
        "session, where the kernel groups processes by session",
    )


def begin(arguments, script):
    """Checks what was asked, raises the session if wanted, opens the results file."""
    if arguments.nice is not None:
        raise_session(arguments.nice)
    arguments.work, arguments.muster = arguments.work.resolve(), arguments.muster.resolve()
    for path, remedy in [
        (arguments.work / "calibrate", "run setup.sh WORK first"),
        (arguments.work / "models" / arguments.model, f"run MODELS={arguments.model} setup.sh WORK first"),
        (arguments.muster, "build it with: cargo build --release"),
    ]:
        if not path.exists():
            sys.exit(f"{path} is missing; {remedy}")
    if arguments.ours not in arguments.contenders:
        sys.exit(f"--ours {arguments.ours} is none of the contenders: {' '.join(arguments.contenders)}")
    return Results(arguments, script)


def raise_session(nice):
    if os.getsid(0) != os.getpid():
        # A session of its own, so that nothing else is raised with it.
        os.execvp("setsid", ["setsid", "--wait", sys.executable, *sys.argv])
    try:
        pathlib.Path("/proc/self/autogroup").write_text(f"-{nice}")
    except OSError as error:
        sys.exit(f"--raise {nice}: the session cannot be raised ({error}); it needs root, and autogroup in the kernel")


class Results:
    """Figures as they come, in memory and in a file."""

    def __init__(self, arguments, script):
        self.arguments, self.rows = arguments, []
        self.path = arguments.results or arguments.work / "results.jsonl"
        self.run = f"{script} {datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        self.write({"run": self.run, "machine": machine(), "muster": version(arguments.muster),
                    "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]})

    def write(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def turn(self, number, contender, measure):
        """Gives a contender its turn: readings before and after, its figures between them."""
        before, used, begin = self.reading(), children(), time.monotonic()
        figures, failure = {}, None
        try:
            figures = measure()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failure = str(error)
            print(f"round {number}  {contender}: {failure}", file=sys.stderr)
        wall, cpu = time.monotonic() - begin, children() - used
        row = {
            "run": self.run, "model": self.arguments.model, "round": number, "contender": contender,
            "calibration": [before, self.reading()], "wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2),
            "figures": figures, **({"failure": failure} if failure else {}),
        }
        self.rows.append(row)
        self.write(row)
        print(f"round {number}  {contender}: readings {row['calibration']}, {wall:.0f} s, {cpu:.0f} s of processors",
              file=sys.stderr)

    def check(self):
        """Ends the program with status 1 if a turn failed; what the others gave has been printed."""
        failed = [f"{row['contender']} in round {row['round']}" for row in self.rows if "failure" in row]
        if failed:
            sys.exit(f"failed: {', '.join(failed)}; see above, or {self.path}")

    def reading(self):
        """What the cores give now, in GFLOP/s."""
        command = [self.arguments.work / "calibrate", str(self.arguments.threads), "0.5"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)

    def counted(self):
        """The rows to compare: all, or those that nothing has disturbed."""
        highest = max(reading for row in self.rows for reading in row["calibration"])
        return [row for row in self.rows if self.arguments.all or min(row["calibration"]) >= CLEAN * highest]

    def contenders(self):
        return list(dict.fromkeys(row["contender"] for row in self.rows))

    def summary(self):
        """What each contender's turns were like, the disturbed ones too."""
        rows = [(name, [row for row in self.rows if row["contender"] == name]) for name in self.contenders()]
        readings = lambda turns: [reading for row in turns for reading in row["calibration"]]
        heads = ["", "lowest", "highest", "wall", "processors"]
        table("Turns: readings in GFLOP/s, seconds, and seconds of processors", heads, [
            [name, f"{min(readings(turns)):.0f}", f"{max(readings(turns)):.0f}",
             number([row["wall_seconds"] for row in turns]), number([row["cpu_seconds"] for row in turns])]
            for name, turns in rows
        ])
        left_out = len(self.rows) - len(self.counted())
        if left_out:
            print(f"\n{left_out} of {len(self.rows)} turns were disturbed and are left out below: a reading beside "
                  f"them was under {CLEAN:.0%} of the highest (--all counts them).")

    def medians(self, title, figures, prefix=""):
        """One row a figure, one column a contender: the median of the rounds. Figures are told without `prefix`."""
        rows, names = self.counted(), self.contenders()

        def cell(name, figure):
            return number([row["figures"].get(figure) for row in rows if row["contender"] == name])

        table(title, ["", *names],
              [[figure.removeprefix(prefix), *(cell(name, figure) for name in names)] for figure in figures])

    def ratios(self, title, figures):
        """Ours over theirs in the same round: the median of the rounds, and how far these lie apart."""
        rows = {(row["round"], row["contender"]): row["figures"] for row in self.counted()}
        names = [name for name in self.contenders() if name != self.arguments.ours]
        rounds = {number for number, _ in rows}

        def cell(name, figure):
            of = lambda contender, number: rows.get((number, contender), {}).get(figure)
            pairs = [(of(self.arguments.ours, number), of(name, number)) for number in rounds]
            values = [ours / theirs for ours, theirs in pairs if ours and theirs]
            return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"

        table(f"{title}: {self.arguments.ours} / each, median of rounds (lowest-highest)", ["", *names],
              [[figure, *(cell(name, figure) for name in names)] for figure in figures])


def number(values):
    values = [value for value in values if value is not None]
    return f"{statistics.median(values):.1f}" if values else "-"


def table(title, heads, rows):
    """A table in Markdown."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    print(f"\n{title}\n")
    for row in [heads, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


def children():
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lines(command, limit, **options):
    """Runs a program to its end; gives the JSON objects that it prints, one a line."""
    command = [str(word) for word in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, **options)
    if done.returncode != 0:
        said = done.stderr.strip()[-1000:]
        raise RuntimeError(f"`{' '.join(command)}` ended with status {done.returncode}: {said}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def machine():
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return {"processor": processor, "cores": os.cpu_count(), "kernel": platform.release()}


def version(muster):
    return subprocess.run([muster, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def options(name):
    """`KIND:FORM,OPTION,…` as its parts; the options are `spin`, `threads=N` and, of llama.cpp, `build=NAME`."""
    kind, _, rest = name.partition(":")
    form, *words = rest.split(",")
    for word in words:
        is_build = kind == "llama" and word.startswith("build=") and "/" not in word
        if word != "spin" and not word.removeprefix("threads=").isdigit() and not is_build:
            sys.exit(f"contender {name}: unknown option `{word}`; known: spin, threads=N and, for llama, build=NAME")
    return kind, form, words


def option(words, name):
    """The value of an option `NAME=VALUE`, if it is there."""
    return next((word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")), None)


def threads(words, usual):
    return int(option(words, "threads") or usual)


def llama_tools(work, words):
    """Where llama.cpp's programs lie."""
    build = option(words, "build")
    tools = work / (f"lbuild-{build}" if build else "lbuild") / "bin"
    if not (tools / "llama-server").exists():
        raise RuntimeError(f"{tools} holds no llama-server; setup.sh builds it (build=noamx: with WITHOUT_AMX=yes)")
    return tools


def folder(work, model, form):
    """Where a form of a model lies, for a program that takes folders."""
    path = work / ("optimum" if form.startswith("optimum") else "genai")
    return path / (model + form.removeprefix("optimum") if form.startswith("optimum") else f"{model}-{form}")


def graph(work, model, form):
    """The same for a program that takes a graph."""
    return folder(work, model, form) / ("onnx/model_q4.onnx" if form == "optimum" else "model.onnx")
