"""Runs are found by what people call them, listed, named and removed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import FakeEngine

from pipeline import commands
from pipeline.cli.main import app
from pipeline.commands import TrainingOptions
from pipeline.commands import cache as cache_commands
from pipeline.commands import runs as run_commands
from pipeline.commands.gc import gc
from pipeline.config import ExtractConfig, HeadConfig, SplitConfig
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.runs.find import all_runs, find_run
from pipeline.runs.run import HeadRun, Run
from pipeline.store.records import find_record, records
from pipeline.util.files import folder_size, mark_folder, matching
from pipeline.util.references import one_meant


@pytest.fixture
def three(pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> list[HeadRun]:
    commands.extract(ExtractConfig(str(pictures)), cache)
    heads = [("knn1", None), ("logreg", "good"), ("centroid", None)]
    return [commands.train_head(HeadConfig(head), cache, reports, TrainingOptions(name=name)) for head, name in heads]


class TestFind:
    def test_latest_best_names_and_parts(self, three: list[HeadRun], reports: Path) -> None:
        knn, logreg, centroid = three
        best = max(three, key=lambda run: (run.metrics["val"]["accuracy"], run.created))
        for reference, wanted in {
            None: centroid,
            "latest": centroid,
            "best": best,
            "good": logreg,
            "knn1": knn,
            centroid.id[-4:]: centroid,
            logreg.id: logreg,
            logreg.id[:-2]: logreg,
            str(reports / knn.id): knn,
        }.items():
            assert find_run(reports, reference, (HeadRun,))[0].id == wanted.id, reference

    def test_best_is_of_the_data_of_the_latest(
        self, three: list[HeadRun], red_and_blue: Path, cache: Path, reports: Path
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        other = commands.train_head(HeadConfig("centroid"), cache, reports)
        assert find_run(reports, "best", (HeadRun,))[0].id == other.id

    def test_what_fits_several_or_none(self, three: list[HeadRun], reports: Path) -> None:
        with pytest.raises(RunError, match="'train-head' fits several runs"):
            find_run(reports, "train-head", (HeadRun,))
        with pytest.raises(RunError, match="'nothing' is not among the runs .* list them with: tlpipe runs"):
            find_run(reports, "nothing", (HeadRun,))

    def test_an_empty_text_names_nothing(self, three: list[HeadRun], cache: Path, reports: Path) -> None:
        run_commands.rm([three[0].id, three[1].id], reports)
        with pytest.raises(RunError, match="empty text names none"):
            run_commands.rm([""], reports)
        assert len(all_runs(reports)) == 1
        with pytest.raises(StoreError, match="empty text names none"):
            find_record(cache, "")


class TestNames:
    @pytest.mark.parametrize("name", ["", "a/b", "../up", "latest", "best", "a" * 61, ".hidden", "<b>"])
    def test_illegal(self, name: str, three: list[HeadRun], cache: Path, reports: Path) -> None:
        with pytest.raises(ConfigError, match="--name is"):
            commands.train_head(HeadConfig("knn1"), cache, reports, TrainingOptions(name=name))
        assert len(all_runs(reports)) == 3

    def test_taken(self, three: list[HeadRun], cache: Path, reports: Path) -> None:
        with pytest.raises(ConfigError, match=f"--name good is taken by {three[1].id}"):
            commands.train_head(HeadConfig("knn1"), cache, reports, TrainingOptions(name="good"))
        with pytest.raises(ConfigError, match="taken"):
            run_commands.name(three[0].id, "good", reports)
        assert run_commands.name("good", "good", reports).name == "good"

    def test_taken_where_the_run_lies(self, three: list[HeadRun], reports: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"taken by {three[1].id}"):
            run_commands.name(str(reports / three[0].id), "good", tmp_path / "elsewhere")

    def test_given_and_taken_away(self, three: list[HeadRun], reports: Path) -> None:
        run_commands.name("latest", "mine", reports)
        assert find_run(reports, "mine", (Run,))[0].id == three[2].id
        run_commands.name("mine", None, reports)
        with pytest.raises(RunError, match="is not among"):
            find_run(reports, "mine", (Run,))


def test_listed_newest_first_with_all_that_sets_them_apart(three: list[HeadRun], cache: Path, reports: Path) -> None:
    commands.train_head(HeadConfig("linear", epochs=3, l2=0.5), cache, reports)
    done = CliRunner().invoke(app, ["runs", "--reports", str(reports), "--cache", str(cache)])
    lines = [line for line in done.stdout.splitlines() if "train-head" in line]
    assert ["linear" in lines[0], "centroid" in lines[1], "(good)" in lines[2], "knn1" in lines[3]] == [True] * 4
    assert "--epochs 3 --l2 0.5" in " ".join(done.stdout.split())
    low, high = three[0].metrics["test"]["accuracy_95"]
    assert f"({100 * low:.1f} to {100 * high:.1f})" in " ".join(done.stdout.split())
    value = json.loads(CliRunner().invoke(app, ["runs", "--json", "--reports", str(reports)]).stdout)
    assert [run["head"] for run in value["runs"]] == ["linear", "centroid", "logreg", "knn1"]


def test_runs_on_other_features_are_told_apart(
    three: list[HeadRun], pictures: Path, cache: Path, reports: Path
) -> None:
    """By the options of extract, in the list of runs and on the leaderboard, where a group says what it holds."""
    splits = SplitConfig(val_fraction=0.3)
    commands.extract(ExtractConfig(str(pictures), pooling="max", interpolation="bilinear", splits=splits), cache)
    commands.train_head(HeadConfig("knn1"), cache, reports)
    shown = CliRunner().invoke(app, ["runs", "--reports", str(reports)]).stdout
    words = "--pooling max --interpolation bilinear --val-fraction 0.3"
    assert all(word in shown for word in words.split())
    index = commands.report([], cache, reports).index.read_text()
    assert words in index
    headings = re.findall(r"<section><h2>(.*?)</h2>\s*<p>(.*?)</p>", index)
    assert len(headings) == 2
    assert len({data for data, _ in headings}) == 1
    assert len({images for _, images in headings}) == 2
    assert re.fullmatch(r"\d+ train, \d+ val, \d+ test, dataset [0-9a-f]{8}", headings[0][1])


def test_the_shell_completes_what_lies_in_the_folders_of_the_line(three: list[HeadRun], reports: Path) -> None:
    def completed(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": f"{len(line.split()) - 1}", "_TLPIPE_COMPLETE": "bash_complete"}
        printed = CliRunner().invoke(app, [], prog_name="tlpipe", env=words).stdout
        return [line.removeprefix("plain,") for line in printed.split()]

    assert completed(f"tlpipe evaluate --reports {reports} go") == ["good"]
    assert completed(f"tlpipe evaluate --reports {reports} {three[1].id[:-1]}") == [three[1].id]
    assert completed(f"tlpipe evaluate --reports {reports}/none go") == ["file,go"], "by the shell"
    assert completed("tlpipe extract pic") == completed("tlpipe predict latest pic") == ["file,pic"]
    assert completed(f"tlpipe runs rm --reports {reports} go") == ["good"]
    assert completed("tlpipe train-head --head mlp5") == ["mlp512-128"]
    assert completed("tlpipe extract --endpoint conv") == [f"conv{number}" for number in range(1, 6)]
    assert completed("tlpipe extract --backbone mobilenet025 --endpoint block1")[0] == "block1"
    assert completed("tlpipe extract --endpoint a") == []
    assert "all" in completed(f"tlpipe finetune --cache {reports.parent / 'cache'} --blocks a")


def test_removed(three: list[HeadRun], reports: Path) -> None:
    with pytest.raises(RunError, match="'nothing' is not among"):
        run_commands.rm(["good", "nothing"], reports)
    assert len(all_runs(reports)) == 3, "all are found before the first is removed"
    assert [run.id for run in run_commands.rm(["good", three[1].id], reports)] == [three[1].id], "named twice"
    assert [run.id for run in all_runs(reports)] == [three[0].id, three[2].id]


class TestNewest:
    def test_an_extract_that_failed_is_not_what_the_next_command_takes(
        self, three: list[HeadRun], pictures: Path, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        good = find_record(cache, None)
        shutil.copytree(pictures, tmp_path / "spoilt")
        for path in (tmp_path / "spoilt" / "grey").iterdir():
            path.write_text("no picture")
        with pytest.raises(Exception, match="No image of the class grey can be read"):
            commands.extract(ExtractConfig(str(tmp_path / "spoilt")), cache)
        assert len(records(cache)) == 2
        assert find_record(cache, None).id == good.id
        rows = {row["data"]: row["complete"] for row in cache_commands.ls(cache)}
        assert rows == {str(pictures): True, str(tmp_path / "spoilt"): False}
        done = CliRunner().invoke(app, ["cache", "ls", "--cache", str(cache)])
        assert done.stdout.count("INCOMPLETE") == 1

    def test_a_stopped_extract_alone_is_named(
        self, pictures: Path, cache: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(FakeEngine, "stream", stop)
        with pytest.raises(KeyboardInterrupt):
            commands.extract(ExtractConfig(str(pictures)), cache)
        with pytest.raises(StoreError, match="but those of extracts that were stopped or failed"):
            find_record(cache, None)
        monkeypatch.undo()

    def test_what_another_command_wanted_is_not_the_newest(
        self, pictures: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        own = commands.extract(ExtractConfig(str(pictures)), cache).record
        other = commands.extract(
            ExtractConfig(str(pictures), views=1, augment="flip"), cache, made_by="finetune"
        ).record
        assert other.id != own.id
        assert find_record(cache, None).id == own.id
        again = commands.extract(ExtractConfig(str(pictures)), cache, made_by="finetune").record
        assert again == own, "the user's own stays as new as it was"
        assert find_record(cache, other.id).made_by == "finetune"
        asked = commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache).record
        assert find_record(cache, None).id == asked.id == other.id


class TestCleaning:
    def test_what_goes_meanwhile_is_no_error(
        self, three: list[HeadRun], pictures: Path, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that writes beside gc gives its files other names at any moment."""
        gone = cache / "features" / "x" / ".y.h5.00000000-1-00000000.partial"
        monkeypatch.setattr("pipeline.commands.gc.matching", lambda *asked: [*matching(*asked), gone])
        monkeypatch.setattr("pipeline.commands.gc.is_abandoned", lambda path: path == gone)
        found = gc(cache, reports)
        assert {item.path: item.size for item in found.found}.get(gone, 0) == 0
        found_below = list(cache.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rglob", lambda self, pattern: [*found_below, gone])
            patch.setattr(Path, "is_file", lambda self: True)
            assert folder_size(cache) > 0

    def test_what_other_options_gave_is_kept(self, three: list[HeadRun], pictures: Path, cache: Path) -> None:
        first = find_record(cache, None)
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(val_fraction=0.3)), cache)
        assert first.dataset != find_record(cache, None).dataset
        assert gc(cache, cache / "none").found == []

    def test_features_of_other_reports_folders_are_kept(
        self, three: list[HeadRun], pictures: Path, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        first = find_record(cache, None)
        commands.train_head(HeadConfig("knn1"), cache, tmp_path / "other", TrainingOptions(first.id))
        shutil.copy(pictures / "dark" / "0.png", pictures / "light" / "dark.png")
        commands.extract(ExtractConfig(str(pictures)), cache)  # takes the place of the first
        shutil.rmtree(reports)
        reports.mkdir()
        assert gc(cache, reports).found == [], "the other folder is there, and needs the first"
        (tmp_path / "other").rename(tmp_path / "away")
        found = gc(cache, reports, delete=True)
        assert found.found == []
        assert found.away == [str(tmp_path / "other")]
        assert {record.id for record in records(cache)} >= {first.id}
        (tmp_path / "other").mkdir()  # where a disk is mounted when it is there
        assert gc(cache, reports).away == [str(tmp_path / "other")]
        mark_folder(tmp_path / "other")  # there again, and without its runs
        assert first.id in {item.path.stem for item in gc(cache, reports).found}


class TestWriters:
    def test_shards_say_what_computed_them(self, three: list[HeadRun], cache: Path) -> None:
        (row,) = cache_commands.ls(cache, writers=True)
        (writer,) = row["written_by"]
        assert {"tlpipe", "pillow", "keras", "engine", "precision", "processor"} <= set(writer)
        done = CliRunner().invoke(app, ["cache", "ls", "--verbose", "--cache", str(cache)])
        assert f"pillow {writer['pillow']}" in done.stdout
        assert "written_by" not in cache_commands.ls(cache)[0]

    def test_rows_are_computed_again(self, three: list[HeadRun], cache: Path, fake_engine: FakeEngine) -> None:
        before = fake_engine.n_computed
        (found,) = cache_commands.verify(cache, recompute=7).recomputed
        assert (found.n, fake_engine.n_computed - before) == (7, 7)
        assert found.max_difference == 0
        assert found.cosine == pytest.approx(1)

    def test_a_difference_is_told(self, three: list[HeadRun], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = FakeEngine.stream
        monkeypatch.setattr(FakeEngine, "stream", lambda self, batches: (2 + one for one in stream(self, batches)))
        (found,) = cache_commands.verify(cache, recompute=3).recomputed
        assert found.max_difference == pytest.approx(2, abs=1e-4)
        with pytest.raises(ConfigError, match="--recompute is -1"):
            cache_commands.verify(cache, recompute=-1)


class TestOneMeant:
    """Things of ids a-one, a-two and b-one, of which some can't be read."""

    @staticmethod
    def meant(reference: str, damaged: str = "", named: str | None = None) -> str:
        known = [SimpleNamespace(id=name, name=named) for name in ("a-one", "a-two", "b-one") if name != damaged]
        problems = {damaged: RunError("damaged")} if damaged else {}
        alias = None if named is None else lambda one: one.name
        return one_meant(reference, known, problems, "things", "tlpipe runs", RunError, alias).id

    def test_whole_ids_come_before_starts_and_these_before_parts(self) -> None:
        assert [self.meant(text) for text in ("a-one", "b", "two")] == ["a-one", "b-one", "a-two"]
        with pytest.raises(RunError, match="'one' fits several things: b-one, a-one; list them with: tlpipe runs"):
            self.meant("one")

    @pytest.mark.parametrize(("reference", "damaged"), [("a-one", "a-one"), ("a", "a-two"), ("two", "a-two")])
    def test_a_damaged_one_that_may_be_meant_is_an_error(self, reference: str, damaged: str) -> None:
        with pytest.raises(RunError, match="^damaged$"):
            self.meant(reference, damaged)

    @pytest.mark.parametrize(("reference", "damaged"), [("a-one", "a-two"), ("b", "a-one"), ("a-t", "a-one")])
    def test_others_are_told(self, reference: str, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
        assert self.meant(reference, damaged).startswith(reference)
        assert caplog.messages == ["damaged"]

    def test_a_damaged_one_may_have_had_any_other_name(self) -> None:
        assert self.meant("a-one", "b-one", named="") == "a-one"
        with pytest.raises(RunError, match="^damaged$"):
            self.meant("a-o", "b-one", named="")
