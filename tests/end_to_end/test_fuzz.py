"""Random flags, sweep files, run directories, records and archives: each gives a result or one error line.

FUZZ=2500 pytest tests/end_to_end/test_fuzz.py tries 2,500 inputs of each of the five kinds instead of 5.
"""

import contextlib
import copy
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilenet_jax import config_keys

SETTINGS = settings(
    max_examples=int(os.environ.get("FUZZ", "5")),
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Iterator[Callable[..., Answer]]:
    """Run a command of `fork_server.py` with arguments; return exit code, stdout and stderr."""
    here = tmp_path_factory.mktemp("here")
    with contextlib.ExitStack() as stack:
        servers = {}

        def run(name: str, *arguments: object) -> Answer:
            if name not in servers:
                line = [sys.executable, str(ROOT / "tests" / "fork_server.py"), name]
                process = subprocess.Popen(line, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                servers[name] = stack.enter_context(process)
                stack.callback(process.stdin.close)  # type: ignore[union-attr]
            process = servers[name]
            process.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"{name} ended at {arguments}"
            return tuple(json.loads(answer))

        yield run
        assert not list(here.iterdir())


def check(answer: Answer) -> None:
    """Check that there is either a result or one error line: no traceback, no time-out."""
    code, out, err = answer
    if code == 0:
        assert out and not err, answer
    else:
        assert code == 1 and not out and re.fullmatch(r"error: [^\n]+\n", err), answer


# Values that are not what a key expects.
# fmt: off
odd = st.sampled_from([
    "", " ", "nan", "inf", "-inf", "-0", "0", "1", "-1", "0.5", "1e308", "1e-308", "1e999", "0x10", "1_0", "3e-4",
    "9" * 30, "True", "false", "None", "null", "[]", "{}", "(1,)", "v1", "v2", "sgd", "linear", "cifar10", "digits",
    "alpha", "alpha=0.5", "alpha=0.5,rho=2", ",", "=", "../..", "/", "~", "é", "\udcff", "%s%n", "${args}",
])
# fmt: on
text = st.text(st.characters(exclude_characters="\0"), max_size=30)
value = st.one_of(odd, text, st.integers().map(str), st.floats().map(str), st.sampled_from(["A" * 3000]))
key = st.one_of(
    st.sampled_from(sorted(config_keys.RULES)), st.sampled_from(["", "model", "model.", "point", "x.y", "seed.a"]), text
)
argument = st.one_of(
    st.tuples(key, value).map(lambda kv: f"--config.{kv[0]}={kv[1]}"),
    st.tuples(key, value).map(lambda kv: f"-config.{kv[0]}={kv[1]}"),
    key.map(lambda k: f"--noconfig.{k}"),
    key.map(lambda k: f"--config.{k}"),
    st.sampled_from(
        ["--config=", "--config=/", "--config=nowhere.py", "--config", "--format=json", "--format=xml", "--"]
    ),
    st.sampled_from(
        ["--sweep=", "--sweep=/", "--workers=x", "--fuse=0", "--run_dir=", "--dry_run=maybe", "x", "-", "--x"]
    ),
)


@SETTINGS
@given(st.lists(argument, max_size=4))
def test_overrides(command, arguments):
    check(command("launch", "--dry_run", *arguments))


SWEEPS = [path.read_bytes() for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.sampled_from(["0.5", "v2", "grid", "é", ""]), odd
)
words = [
    "program",
    "launch.py",
    "method",
    "grid",
    "random",
    "metric",
    "name",
    "goal",
    "parameters",
    "command",
    "run_cap",
]
words += ["value", "values", "min", "max", "q", "distribution", "config.model.alpha", "config.point", "config.seed"]
words += ["q_uniform", "log_uniform", "int_uniform", "${args}", "${program}", "--config=configs/cifar_v1.py"]


def nested(leaf, name):
    """Return a strategy of values, of lists and mappings of them, and of lists and mappings of these."""
    found = leaf
    for _ in range(2):
        found = st.one_of(leaf, st.lists(found, max_size=4), st.dictionaries(name, found, max_size=4))
    return found


tree = nested(st.one_of(scalar, st.sampled_from(words)), st.one_of(st.sampled_from(words), text))


@st.composite
def edited(draw, wholes):
    """Draw one of these, with bytes removed, inserted or replaced in a few places."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 20))] = draw(st.binary(max_size=12))
    return bytes(content)


@st.composite
def rearranged(draw):
    """Draw a sweep file with parts of its tree replaced."""
    whole = yaml.safe_load(draw(st.sampled_from(SWEEPS)))
    place = whole
    for _ in range(draw(st.integers(1, 3))):
        names = [*place] if isinstance(place, dict) else [*range(len(place))] if isinstance(place, list) else []
        if not names:
            break
        name = draw(st.sampled_from(names))
        if draw(st.booleans()) or not isinstance(place[name], dict | list):
            place[name] = draw(tree)
            break
        place = place[name]
    return yaml.safe_dump(whole, allow_unicode=True).encode()


dumped = tree.map(lambda t: yaml.safe_dump(t, allow_unicode=True).encode())


@SETTINGS
@given(st.one_of(edited(SWEEPS), rearranged(), dumped, st.binary(max_size=200)), st.lists(argument, max_size=1))
def test_sweep_files(command, tmp_path_factory, content, arguments):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    check(command("launch", "--dry_run", f"--sweep={path}", *arguments))


RECORDS = sorted((ROOT / "results" / "cifar10").iterdir())
hostile = st.sampled_from([
    *("\ud800", "a\0b", "\x1b[2J", "$\\bad{$", "</text><script>", "../x/y", "\ufffe", "a\n# b", "V" * 300),
    *(0, -1, 10**30, 10**400, 1e300, -1e300, True, "v3", {"a": [{}]}),
])  # fmt: skip
json_value = st.one_of(
    hostile, nested(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, odd, hostile), text)
)


@st.composite
def changed(draw, content: bytes):
    """Draw the first object in a JSON file with some values replaced."""
    first, _, rest = content.partition(b"\n") if content.startswith(b'{"step"') else (content, b"", b"")
    found = json.loads(first)
    for _ in range(draw(st.integers(1, 3))):
        place = found
        inner = [value for value in [*place.values()] if isinstance(value, dict | list) and value]
        while inner and draw(st.integers(0, 2)):
            place = draw(st.sampled_from(inner))
            values = place.values() if isinstance(place, dict) else place
            inner = [value for value in values if isinstance(value, dict | list) and value]
        names = [*place, "new", "a/b\0\ud800"] if isinstance(place, dict) else [*range(len(place))]
        place[draw(st.sampled_from(names))] = copy.deepcopy(draw(json_value))  # later changes may be inside it
    if draw(st.integers(0, 4)):
        found.pop("sha256", None)  # else the checksum fails and nothing else is read
    return json.dumps(found).encode() + b"\n" + rest


@SETTINGS
@given(st.data())
def test_run_directories(command, tmp_path_factory, data):
    top = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.rmtree(top, ignore_errors=True)
    for source in data.draw(st.lists(st.sampled_from(RECORDS), min_size=1, max_size=3, unique=True)):
        shutil.copytree(source, top / "runs" / source.name)
        for path in sorted((top / "runs" / source.name).iterdir()):
            how = data.draw(st.sampled_from(["whole", "whole", "edited", "changed", "cut", "away", "a directory"]))
            content = path.read_bytes()
            if how == "edited":
                path.write_bytes(data.draw(edited([content])))
            elif how == "changed":
                path.write_bytes(data.draw(changed(content)))
            elif how == "cut":
                path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
            elif how in ("away", "a directory"):
                path.unlink()
                if how == "a directory":
                    path.mkdir()
    out = top / "out"
    written = data.draw(st.integers(0, 9)) == 0
    answer = command("report", top / "runs", *([f"--out={out}"] if written else []))
    check(answer)
    if written:
        pages = ["runs.csv", "runs.html", "runs.md"] if answer[0] == 0 else []
        assert [path.name for path in sorted(out.glob("runs.*"))] == pages
    first, *others = sorted((top / "runs").iterdir())
    check(command("report", "--compare", first, others[0] if others else first))


LATENCY = (ROOT / "results" / "bench" / "cpu_latency.json").read_bytes()


@SETTINGS
@given(
    st.one_of(changed(LATENCY), changed(LATENCY), edited([LATENCY]), json_value.map(lambda v: json.dumps(v).encode()))
)
def test_records_of_inference_times(command, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "latency.json"
    path.write_bytes(content)
    check(command("report", f"--latency={path}"))


@st.composite
def archives(draw):
    """Draw an archive, intact or damaged, whose members have odd names, links and sizes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for _ in range(draw(st.integers(0, 4))):
            usual = ["cifar-10-batches-bin/data_batch_1.bin", "data_batch_2.bin", "test_batch.bin", "../test_batch.bin"]
            member = tarfile.TarInfo(draw(st.one_of(st.sampled_from([*usual, "/etc/passwd", "../../x"]), text)) or "x")
            member.type = draw(st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]))
            member.linkname = "/etc/passwd"
            content = draw(st.binary(max_size=100))
            member.size = len(content) if member.isreg() else 0
            keys = st.sampled_from(["size", "path", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major"])
            member.pax_headers = draw(
                st.dictionaries(keys, st.one_of(odd, st.sampled_from(["9" * 500, "0,0"])), max_size=2)
            )
            with contextlib.suppress(ValueError, UnicodeEncodeError):  # a name that tar cannot hold
                tar.addfile(member, io.BytesIO(content))
        if draw(st.integers(0, 9)) == 0:  # a member with a huge size in its header
            member = tarfile.TarInfo("data_batch_1.bin")
            member.size = draw(st.sampled_from([2**33, 2**60]))
            packed.write(member.tobuf(tarfile.GNU_FORMAT))
    plain = packed.getvalue() + draw(st.binary(max_size=50))
    whole = gzip.compress(plain) if draw(st.integers(0, 4)) else plain
    return draw(edited([whole])) if draw(st.booleans()) else whole


@SETTINGS
@given(st.one_of(archives(), st.binary(max_size=300), st.binary(max_size=300).map(gzip.compress)))
def test_archives(command, tmp_path_factory, content):
    top = tmp_path_factory.getbasetemp() / "archive"
    shutil.rmtree(top, ignore_errors=True)
    (top / "data").mkdir(parents=True)
    (top / "some.tar.gz").write_bytes(content)
    code, out, err = command("archive", top / "some.tar.gz", top / "data")
    assert (code, out) == (1, "") and re.fullmatch(r"error: config.data.archive=[^\n]*\n", err), (code, out, err)
    assert [path for path in top.rglob("*") if path.is_file()] == [top / "some.tar.gz"]


def test_an_archive_that_unpacks_to_a_gigabyte_is_refused_early(command, tmp_path):
    header = tarfile.TarInfo("data_batch_1.bin")
    header.size = 2**30
    packed = gzip.compress(header.tobuf()) + gzip.compress(bytes(2**20), 1) * 2**10  # a file may have several members
    (tmp_path / "bomb.tar.gz").write_bytes(packed)
    (tmp_path / "data").mkdir()
    code, _, err = command("archive", tmp_path / "bomb.tar.gz", tmp_path / "data")
    assert code == 1 and "unpacks to more" in err


@pytest.mark.parametrize("size", [2**33, 2**60])
def test_an_archive_with_a_huge_size_in_its_header(size, command, tmp_path):
    header = tarfile.TarInfo("data_batch_1.bin")
    header.size = size
    (tmp_path / "endless.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)))
    (tmp_path / "data").mkdir()
    code, _, err = command("archive", tmp_path / "endless.tar.gz", tmp_path / "data")
    assert code == 1 and "unpacks to more" in err


def test_a_sweep_file_of_many_aliases(command, tmp_path):
    """The aliases expand to 9**12 words."""
    anchors = [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    start = ["program: launch.py", "method: grid", "description:", "  - &a0 [x, x, x, x, x, x, x, x, x]", *anchors]
    path = tmp_path / "bomb.yaml"
    for last in (
        "metric: *a11",
        "metric: {name: *a11}",
        "run_cap: *a11",
        "command: *a11",
        "parameters: *a11",
        "parameters: {config.seed: *a11}",
        "parameters: {config.seed: {values: *a11}}",
        "parameters: {config.seed: {values: [*a11]}}",
        "parameters: {config.seed: {min: *a11, max: 3}}",
        "parameters: {config.seed: {distribution: *a11}}",
        "parameters: {config.seed: {value: *a11}}",
        "parameters: {*a11 : {value: 1}}",
    ):
        path.write_text("\n".join([*start, last]))
        check(command("launch", "--dry_run", f"--sweep={path}"))
