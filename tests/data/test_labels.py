from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.data.labels import check_classes, class_id, read_labels
from pmm_ray.errors import UserError

ANIMALS = ("cat", "dog", "sea lion")
WANTED = {"a": (1,), "b": (1, 2), "c": (3,)}

JSON_FORMS = {
    "ids": {"a": [1], "b": [1, 2], "c": [3]},
    "ids, unsorted and repeated": {"a": [1, 1], "b": [2, 1], "c": 3},
    "names": {"a": ["cat"], "b": ["dog", "cat"], "c": ["sea lion"]},
    "single names": {"a": "cat", "b": "cat dog", "c": "sea lion"},
    "names and background": {"a": ["background", "cat"], "b": ["cat", "dog"], "c": "sea lion"},
    "multi-hot": {"a": [1, 0, 0], "b": [1, 1, 0], "c": [0, 0, 1]},
    "float multi-hot": {"a": [1.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0]},
    "true and false": {"a": [True, False, False], "b": [True, True, False], "c": [False, False, True]},
    "records": [{"image": "a", "labels": [1]}, {"image": "b", "labels": [1, 2]}, {"image": "c", "labels": [3]}],
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_every_json_form_says_the_same(write, form):
    table = read_labels(write("labels.json", json.dumps(JSON_FORMS[form])), classes=ANIMALS)
    assert table.labels == WANTED
    assert table.names == ANIMALS


CSV_FORMS = {
    "long": "image,label\na,cat\nb,cat\nb,dog\nc,sea lion\n",
    "long with ids": "image,label\na,1\nb,1\nb,2\nc,3\n",
    "ids by pandas, where an image has none": "image,label\na,1.0\nb,1.0\nb,2.0\nb,\nc,3.0\n",
    "ids by pandas in one string": "image,label\na,1.0\nb,1.0;2.0\nc,3\n",
    "semi-colons": "image,labels\na,cat\nb,cat;dog\nc,sea lion\n",
    "semi-colons and spaces": "name,labels\na, cat\nb,cat ; dog\nc,sea lion;\n",
    "spaces": "filename,class\na,cat\nb,cat dog\nc,sea lion\n",
    "ids and spaces": "image,label\na,1\nb,1 2\nc,3\n",
    "tabs": "image\tlabel\na\tcat\nb\tcat;dog\nc\tsea lion\n",
    "European": "image;label\na;cat\nb;cat dog\nc;sea lion\n",
    "columns": "image,cat,dog,sea lion\na,1,0,0\nb,1,1,0\nc,0,0,1\n",
    "columns in another order": "image,sea lion,cat,dog\na,0,1,0\nb,0,1,1\nc,1,0,0\n",
    "columns with the background": "image,Background,cat,dog,sea lion\na,1,1,0,0\nb,1,1,1,0\nc,1,0,0,1\n",
    "columns by pandas": ",image,cat,dog,sea lion\n0,a,1.0,0.0,0.0\n1,b,True,True,False\n2,c,,,1\n",
    "quotes, other columns, blank lines, BOM": '\ufeffid,Image,split,Label\n\n1,"a",train,cat\n'
    '2,b,val,"cat;dog"\n3,c,,sea lion\n',
    "lines of spaces": "image,label\n   \na,cat\nb,cat;dog\n \t \nc,sea lion\n  \n",
    "Windows line ends": "image,label\r\na,cat\r\nb,cat\r\nb,dog\r\nc,sea lion\r\n",
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_every_csv_form_says_the_same(write, form):
    assert read_labels(write("labels.csv", CSV_FORMS[form]), classes=ANIMALS).labels == WANTED


@pytest.mark.parametrize("form", [CSV_FORMS["columns with the background"], "image,label\na,background;cat\n"])
def test_the_background_may_lead_the_given_classes_too(write, form):
    table = read_labels(write("labels.csv", form), classes=("background", *ANIMALS))
    assert table.names == ANIMALS and table.labels["a"] == (1,)


PARQUET_FORMS = {
    "long": {"image": ["a", "b", "b", "c"], "label": ["cat", "cat", "dog", "sea lion"]},
    "long ids": {"image": ["a", "b", "b", "c"], "label": [1, 1, 2, 3]},
    "lists of names": {"image": ["a", "b", "c"], "labels": [["cat"], ["cat", "dog"], ["sea lion"]]},
    "lists of ids": {"image": ["a", "b", "c"], "labels": [[1], [1, 2], [3]]},
    "lists of 0 and 1": {"image": ["a", "b", "c"], "labels": [[1, 0, 0], [1, 1, 0], [0, 0, 1]]},
    "columns": {
        "image": ["a", "b", "c"],
        "cat": [True, True, False],
        "dog": [False, True, False],
        "sea lion": [0, 0, 1],
    },
    "floats with gaps": {"image": ["a", "b", "b", "c"], "label": [1.0, 1.0, 2.0, 3.0]},
}


@pytest.mark.parametrize("form", PARQUET_FORMS)
def test_every_parquet_form_says_the_same(tmp_path, form):
    pq.write_table(pa.table(PARQUET_FORMS[form]), tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet", classes=ANIMALS).labels == WANTED


def test_the_peers_npy_dictionary_says_the_same(tmp_path):
    vectors = {name: np.isin(np.arange(1, 4), ids).astype(np.float32) for name, ids in WANTED.items()}
    np.save(tmp_path / "cls_labels.npy", vectors)
    assert read_labels(tmp_path / "cls_labels.npy", classes=ANIMALS).labels == WANTED


def test_an_npy_dictionary_of_another_number_of_classes_is_refused(tmp_path):
    np.save(tmp_path / "cls_labels.npy", {"a": np.array([1.0, 0, 0, 0], np.float32)})
    with pytest.raises(UserError, match=r"cls_labels\.npy.*4 values, 3 classes"):
        read_labels(tmp_path / "cls_labels.npy", classes=ANIMALS)


def test_an_npy_dictionary_of_probabilities_is_refused(tmp_path):
    np.save(tmp_path / "cls_labels.npy", {"a": np.array([0.9, 0.1, 0.2], np.float32)})
    with pytest.raises(UserError, match="entry of a is no 0/1 vector"):
        read_labels(tmp_path / "cls_labels.npy", classes=ANIMALS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("image,label\nx,zebra\ny,ant\n", ("ant", "zebra")),
        ("image,label\nx,zebra ant\ny,ant\nz,zebra\n", ("ant", "zebra")),
        ("image,label\nx,traffic light\ny,car\n", ("car", "traffic light")),
        ("image,zebra,ant\nx,1,0\n", ("zebra", "ant")),
        ("image,label\nx,background;zebra\ny,ant\nz,background\n", ("ant", "zebra")),
        ("image,zebra,ant,background\nx,1,0,1\n", ("zebra", "ant")),
        ("image,label\nx,3\ny,1\n", ("class 1", "class 2", "class 3")),
        ("image,label\nx,3.0\ny,\nz,1.0\n", ("class 1", "class 2", "class 3")),
    ],
)
def test_without_given_classes_the_file_names_them(write, text, names):
    assert read_labels(write("labels.csv", text), classes=None).names == names


SPELLINGS = {
    "spaces": "image,label\na,red  car\nb,red car;caf\u00e9\nc, red\u00a0car \n",
    "composed or not": "image,label\na,red car\nb,red car;cafe\u0301\nc,red car\n",
    "columns": "image,cafe\u0301,red  car\na,0,1\nb,1,1\nc,0,1\n",
}


@pytest.mark.parametrize("classes", [None, ("cafe\u0301", "red  car")])
@pytest.mark.parametrize("form", SPELLINGS)
def test_spaces_and_composed_characters_make_no_class_of_their_own(write, form, classes):
    table = read_labels(write("l.csv", SPELLINGS[form]), classes=classes)
    assert table.names == ("caf\u00e9", "red car")
    assert table.labels == {"a": (2,), "b": (1, 2), "c": (2,)}


@pytest.mark.parametrize("text", ["image,label\na,Cat\nb,cat\nc,CAT\n", "image,CAT,Cat,cat\na,0,1,1\n"])
def test_names_that_differ_in_case_alone_are_refused(write, text):
    with pytest.raises(UserError, match=r"l\.csv: has classes CAT, Cat and cat: write one of them everywhere"):
        read_labels(write("l.csv", text), classes=None)


def test_words_for_nothing_are_no_classes_unless_they_are_given(write):
    path = write("l.csv", "image,label\na,cat\nb,nan\nc,None\nd,N/A\ne,null\nf,NaN\ng,cat;none\n")
    table = read_labels(path, classes=None)
    assert table.names == ("cat",)
    assert table.labels == {"a": (1,), "b": (), "c": (), "d": (), "e": (), "f": (), "g": (1,)}
    assert read_labels(write("m.csv", "image,label\na,none\n"), classes=("cat", "none")).labels == {"a": (2,)}


def test_multi_hot_vectors_without_names_number_their_classes(write):
    table = read_labels(write("l.json", '{"a": [0, 1], "b": [1, 0]}'), classes=None)
    assert table.names == ("class 1", "class 2")
    assert table.labels == {"a": (2,), "b": (1,)}


def test_class_names_that_are_numbers_are_names_when_given(write):
    table = read_labels(write("l.csv", "image,label\nx,7\n"), classes=("5", "6", "7"))
    assert table.labels == {"x": (3,)}


@pytest.mark.parametrize("classes", [None, ANIMALS])
@pytest.mark.parametrize("cell", ["cat, dog", "cat,dog", "1, 2"])
def test_labels_separated_by_a_comma_are_refused_and_make_no_class_of_their_own(write, cell, classes):
    path = write("l.csv", f'image,label\na,"{cell}"\nb,cat\nc,dog\n')
    with pytest.raises(UserError, match=rf"l\.csv: a has class {cell}, .*: separate labels by ';'.*data\.classes"):
        read_labels(path, classes=classes)


def test_a_class_with_a_comma_can_be_given(write):
    path = write("l.csv", 'image,label\na,"tabby, tabby cat"\n')
    assert read_labels(path, classes=("dog", "tabby, tabby cat")).labels == {"a": (2,)}


def test_an_image_without_a_class_is_kept_as_such(write):
    assert read_labels(write("l.csv", "image,label\nx,\ny,cat\n"), classes=ANIMALS).labels == {"x": (), "y": (1,)}
    assert read_labels(
        write("l.json", '{"x": [], "y": [0, 1, 0]}'.replace("[0, 1, 0]", "[2]")), classes=ANIMALS
    ).labels == {
        "x": (),
        "y": (2,),
    }


def test_an_image_named_twice_in_json_is_merged_and_not_dropped(write):
    assert read_labels(write("l.json", '{"x": [1], "x": [2]}'), classes=ANIMALS).labels == {"x": (1, 2)}


def test_names_keep_their_oddities(write):
    odd = {"a b": [1], "über.猫": [2], "we\nird": [3], "sub/x.JPG": [1]}
    assert set(read_labels(write("l.json", json.dumps(odd)), classes=ANIMALS).labels) == set(odd)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.json", '{"x": ["dgo"]}', r"l\.json: x has class dgo.*did you mean dog\?"),
        ("l.json", '{"x": ["Sea Lion"]}', r"did you mean sea lion\?"),
        ("l.json", '{"x": ["xylophone"]}', r"the classes are cat, dog, sea lion"),
        ("l.json", '{"x": [4]}', r"x has class 4.*ids are 1\.\.3"),
        ("l.json", '{"x": [0, 2]}', r"class 0.*ids are 1\.\.3 \(0 is the background\)"),
        ("l.json", '{"x": [-1]}', r"class -1"),
        ("l.json", '{"x": [1.5]}', r"class 1\.5"),
        ("l.json", '{"x": [Infinity]}', r"class inf"),
        ("l.json", '{"x": [1, 0]}', r"vectors of 2 values, 3 classes"),
        ("l.json", '{"x": {"cat": 1}}', r"the entry of x is no class"),
        ("l.json", '"cat"', r"must be an object"),
        ("l.json", "{}", r"has no labels"),
        ("l.json", "[]", r"columns are none"),
        ("l.json", '{"x": [1}', r"cannot be read"),
        ("l.json", "[" * 100_000, r"cannot be read"),
        ("l.csv", "", r"the columns are none"),
        ("l.csv", "image,label\n", r"has no labels"),
        ("l.csv", "a.jpg,cat\nb.jpg,dog\n", r"the columns are a\.jpg, cat: name them"),
        ("l.csv", "image,label\na,cat,dog\n", r"the line of a has 3 fields.*by ';'"),
        ("l.csv", "image,cat,dgo\na,1,0\n", r"column class dgo.*did you mean dog\?"),
        ("l.csv", "image,cat,dog\na,1,2\n", r"a dog: 2 is not 0 or 1"),
        ("l.csv", 'image,label\n"a,cat\n', r"cannot be read"),
        ("l.parquet", "no parquet", r"cannot be read"),
        ("l.npy", "no numpy", r"not a readable"),
        ("l.xlsx", "x", r"read from \.json, \.csv"),
    ],
)
def test_what_is_wrong_with_a_labels_file_is_one_line_with_its_name(write, name, text, message):
    path = write(name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(path, classes=ANIMALS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_labels_file_names_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: no such labels file: set data\.labels"):
        read_labels(tmp_path / "absent.json", classes=ANIMALS)


def test_text_in_another_encoding_is_named(tmp_path):
    (tmp_path / "l.csv").write_bytes("image,label\nä,cat\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_labels(tmp_path / "l.csv", classes=ANIMALS)


def test_ids_and_names_mixed_without_given_classes_is_an_error(write):
    with pytest.raises(UserError, match=r"mixes ids \(2\) and names \(cat\)"):
        read_labels(write("l.csv", "image,label\nx,cat\ny,2\n"), classes=None)


def test_a_list_of_classes_is_checked():
    assert check_classes(["background", "a", "b"], "data.classes") == ("a", "b")
    for bad in ([], ["background"], ["a", "a"], ["a", " "], [str(n) for n in range(255)]):
        with pytest.raises(UserError, match=r"data\.classes"):
            check_classes(bad, "data.classes")


def test_class_id_of_name_and_number():
    assert class_id("dog", ANIMALS, "x") == class_id(2, ANIMALS, "x") == 2
