"""train.py's options: what it knows beside YOLOv5's, recipes, and what cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from utils.cli import from_keywords
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.training import options
from utils.training.options import FIRST_RECIPE, TrainOptions, is_installed, parse_opt, with_recipe

BUNDLED = sorted((ROOT / "data" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_recipes_are_options_that_work(path: Path) -> None:
    opt = from_keywords(TrainOptions, with_recipe({"recipe": path.stem.removeprefix("recipe.")}))
    held = load_yaml(path)
    assert held and held.items() <= vars(opt).items()
    for name in ("cfg", "data", "hyp"):
        assert (ROOT / str(getattr(opt, name))).exists()


def test_the_first_recipe_downloads_nothing() -> None:
    opt = parse_opt(["--recipe", FIRST_RECIPE])
    assert opt.cfg and opt.weights is None and not opt.backbone_weights
    assert opt.data == "data/digits.yaml", "which is drawn"


def test_given_options_come_before_the_recipe_and_it_before_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 7\nfreeze: backbone\nname: 5\nimgsz: 320\n")
    opt = parse_opt(["--recipe", str(recipe), "--imgsz", "64"])
    assert (opt.epochs, opt.freeze, opt.name, opt.imgsz) == (7, ["backbone"], "5", 64)
    assert (opt.batch_size, opt.recipe) == (TrainOptions().batch_size, str(recipe))
    assert parse_opt(["--recipe", str(recipe), "--epochs", "100"]).epochs == 100, "a default that is given"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "the unknown option 'epoch'; did you mean 'epochs'?"),
        ("batch-size: 3", "the unknown option 'batch-size'; did you mean 'batch_size'?"),
        ("epochs: many", "epochs='many'; it takes a whole number"),
        ("cos_lr: 1", "cos_lr=1; it takes True or False"),
        ("optimizer: Lion", "optimizer='Lion'; it takes one of"),
        ("quad: true", "quad: batches of four"),
        ("plugins: [evil.py]", "plugins is no part of a recipe"),
        ("resume: true", "resume is no part of a recipe"),
        ("recipe: digits", "recipe is no part of a recipe"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_with_its_file(tmp_path: Path, text: str, says: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"imgsz: 64\n{text}\n")
    with pytest.raises(UserError) as caught:
        parse_opt(["--recipe", str(recipe)])
    assert str(caught.value).startswith(f"{recipe}: {says}") and "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe digit: no such recipe; use adamw, digits, or the path"):
        parse_opt(["--recipe", "digit"])
    with pytest.raises(UserError, match="nowhere.yaml: no such file"):
        parse_opt(["--recipe", str(tmp_path / "nowhere.yaml")])


def test_without_options_the_first_recipe_is_trained_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = [], []
    monkeypatch.setattr(train.LOGGER, "info", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(train, "run", lambda **options: asked.append(options))
    for words in ([], ["--epochs", "1"]):
        monkeypatch.setattr("sys.argv", ["train.py", *words])
        train.main()
    assert asked == [{"recipe": FIRST_RECIPE}, {"epochs": 1}]
    assert len(said) == 1 and f"--recipe {FIRST_RECIPE}" in said[0]


def test_a_logger_that_is_not_installed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "absent_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_installed("torch") and not is_installed("absent_package")  # a folder of that name is none
    monkeypatch.setattr(options, "is_installed", lambda package: package != "mlflow")
    assert parse_opt(["--logger", "tensorboard", "wandb"]).logger == ["tensorboard", "wandb"]
    with pytest.raises(UserError, match="--logger mlflow: this package is not installed; pip install mlflow"):
        parse_opt(["--logger", "wandb", "mlflow"])
