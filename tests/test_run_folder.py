"""What a run leaves: its log and its checkpoints, also where it was cut off."""

from star_upstream.training import run_folder


def test_log_forgets_what_a_resumed_run_writes_again(tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    folder.open_log(0)
    folder.log({"update": 1, "train/loss": 0.1})
    folder.log({"update": 2, "train/loss": 1 / 3})
    folder.log({"update": 2, "valid/loss": 5.0})
    folder.log({"update": 3, "train/loss": 0.3})
    with open(tmp_path / "log.csv", "a") as file:
        file.write("4,0.")  # cut short by a kill
    again = run_folder.RunFolder(tmp_path)
    again.open_log(2)
    again.log({"update": 3, "train/loss": 0.3, "valid/loss": 4.0})
    assert (
        tmp_path / "log.csv"
    ).read_text() == f"update,train/loss,valid/loss\n1,0.1,\n2,{1 / 3!r},\n2,,5.0\n3,0.3,4.0\n"


def test_a_checkpoint_lost_in_a_replacement_is_put_back(tmp_path):
    run_folder.outputs.claim_folder(tmp_path, "star distill")
    (tmp_path / ".best.123.old").mkdir()
    (tmp_path / "recipe.yaml").write_text("x")
    assert run_folder.RunFolder(tmp_path).claim(lambda text: "") == "unfinished"
    assert (tmp_path / "best").is_dir()
