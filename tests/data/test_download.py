from __future__ import annotations

from pmm_ray.data import download
from pmm_ray.data.download import advice, main


def test_a_failed_download_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", fail)
    assert main([str(tmp_path / "voc")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no route to host" in error and "VOCtrainval_11-May-2012.tar" in error


def test_voc_is_fetched_through_torchvision_into_its_own_folder(tmp_path, monkeypatch, capsys):
    calls = []

    def fetch(root, **options):
        calls.append((root, options))

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", fetch)
    assert main([str(tmp_path)]) == 0
    assert calls == [(str(tmp_path), {"year": "2012", "image_set": "trainval", "download": True})]
    printed = capsys.readouterr().out
    assert f"data.root={tmp_path}/VOCdevkit/VOC2012" in printed
    assert "SegmentationClassAug" in printed and "trainaug.txt" in printed


def test_a_complete_download_is_not_repeated(tmp_path, monkeypatch):
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"")
    monkeypatch.setattr(download, "_IMAGES", 1)
    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", None)
    assert main([str(tmp_path)]) == 0


def test_the_advice_leaves_out_what_is_there(tmp_path):
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("x\n")
    (tmp_path / "SegmentationClassAug").mkdir()
    printed = advice(tmp_path)
    assert "put trainaug.txt" not in printed
    assert printed.endswith("data.train_list=ImageSets/Segmentation/trainaug.txt")
