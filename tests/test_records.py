"""Files are whole or absent, and finished rows survive a kill."""

import json
import subprocess
import sys

import pytest

from utils.configs import InferConfig
from utils.helpers import UserError
from utils.params import ROOT
from utils.records import Progress, finish_record, record_path, shareable, start_record, whole_file, whole_folder


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_write_one_folder(tmp_path, resume):
    """The second one is refused and harms nothing; once the first is gone, even killed, the way is free."""
    target = tmp_path / "model"
    code = (
        "import sys, pathlib\nfrom utils.records import whole_folder\n"
        f"with whole_folder(pathlib.Path({str(target)!r})) as partial:\n"
        "    (partial / 'weights').write_text('first'); print('there', flush=True); sys.stdin.read()\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert first.stdout.readline() == b"there\n"
    with pytest.raises(UserError, match="another process is writing"), whole_folder(target, resume=resume):
        pass
    assert (tmp_path / "model.partial" / "weights").read_text() == "first"
    first.kill()
    first.communicate()
    with whole_folder(target, resume=resume) as partial:
        assert (partial / "weights").exists() == resume
        (partial / "weights").write_text("second")
    assert (target / "weights").read_text() == "second"


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_has_no_final_name_and_the_next_run_starts_clean(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), whole_folder(target) as partial:
        (partial / "weights").write_text("half")
        raise RuntimeError
    assert not target.exists()
    with whole_folder(target) as partial:
        assert not list(partial.iterdir())
        (partial / "weights").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(UserError, match="--overwrite"), whole_folder(target):
        pass


def test_overwrite_keeps_the_old_folder_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(UserError, match="would be deleted"), whole_folder(target, overwrite=True):
        pass  # without a run record it is not ours to delete
    (target / "run.json").write_text("{}")
    with pytest.raises(RuntimeError), whole_folder(target, overwrite=True):
        raise RuntimeError
    assert (target / "weights").read_text() == "old"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    old = tmp_path / "model.old"
    old.mkdir()
    (old / "weights").write_text("old")
    with pytest.raises(UserError, match="--overwrite"), whole_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "weights").read_text() == "old" and not old.exists()


def test_progress_survives_a_cut_at_every_byte_of_the_last_line(tmp_path):
    output = tmp_path / "out.csv"
    progress = Progress(output, {"model": "a"})
    progress.add("1", text="first")
    progress.add("2", text="söcond\nline")
    whole = progress.path.read_bytes()
    last = len(whole.rstrip(b"\n").rpartition(b"\n")[0]) + 1
    for cut in range(last, len(whole)):
        progress.path.write_bytes(whole[:cut])
        again = Progress(output, {"model": "a"})
        assert list(again.done) == ["1"]
        again.add("2", text="söcond\nline")
        assert progress.path.read_bytes() == whole


def test_progress_of_other_settings_is_refused(tmp_path):
    Progress(tmp_path / "out.csv", {"model": "other"})  # finished nothing, so it binds nobody
    Progress(tmp_path / "out.csv", {"model": "a", "seed": 1}).add("1", text="x")
    with pytest.raises(UserError, match="seed was 1, is 2"):
        Progress(tmp_path / "out.csv", {"model": "a", "seed": 2})
    assert not Progress(tmp_path / "out.csv", {"model": "a", "seed": 2}, overwrite=True).done


def test_a_finished_output_is_not_overwritten(tmp_path):
    (tmp_path / "out.csv").write_text("done")
    with pytest.raises(UserError, match="already there"):
        Progress(tmp_path / "out.csv", {})


def test_sigkill_while_rows_are_written_loses_no_finished_row(tmp_path):
    """A real process, killed between rows: what it announced as finished is there."""
    code = (
        "import sys; from pathlib import Path; from utils.records import Progress\n"
        "p = Progress(Path(sys.argv[1]), {'m': 1})\n"
        "for n in range(10**6):\n    p.add(str(n), text='x' * 200); print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out.csv")], stdout=subprocess.PIPE, text=True
    )
    announced = [process.stdout.readline() for _ in range(500)]
    process.kill()
    process.wait()
    done = Progress(tmp_path / "out.csv", {"m": 1}).done
    assert {line.strip() for line in announced} <= set(done)


def test_the_record_knows_settings_code_and_data_but_no_home_folder(tmp_path):
    data = tmp_path / "in.csv"
    data.write_text("x")
    out = tmp_path / "out.csv"
    out.write_text("y")
    finish_record(start_record(InferConfig(seed=7), [data]), out, counts={"ok": 1})
    record = json.loads(record_path(out).read_text())
    assert record["config"]["seed"] == 7 and record["counts"] == {"ok": 1}
    assert record["config"]["input"] == "datasets/content_moderation/test.csv"
    assert record["libraries"]["transformers"] and record["started"] <= record["finished"]
    assert list(record["inputs"].values()) == ["2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"]


def test_records_hold_no_path_of_this_machine_also_in_lists():
    inside = str(ROOT / "datasets" / "a.csv")
    assert shareable([inside, 3]) == ["datasets/a.csv", 3] and shareable(inside) == "datasets/a.csv"
