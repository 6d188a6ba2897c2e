"""Round trip, overrides, and bad settings: each one line that names the key."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.config.loading import load_config, schema
from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError


def test_every_yaml_loads_and_round_trips(configs):
    for file in configs:
        config = load_config(file)
        assert load_config(yaml.safe_load(config.to_yaml())) == config


@pytest.fixture
def configs():
    from pathlib import Path

    found = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert len(found) == 5
    return found


def test_the_embedded_toy_config_is_the_one_people_read(configs):
    from lite_c2f.toy import CONFIG

    assert CONFIG.read_text() == next(file for file in configs if file.name == "toy.yaml").read_text()


def test_overrides_reach_the_depths():
    config = load_config({"coarse": {"updates": 9}}, ["coarse.length.max=512", "coarse.lr=2e-5", "run.dir=a b"])
    assert (config.coarse.updates, config.coarse.length.max, config.coarse.lr) == (9, 512, 2e-5)
    assert config.run.dir == "a b"


def test_sources_take_paths_and_mappings():
    config = load_config({}, ["data.preferences=[a.jsonl, {path: b/*.csv, weight: 0.5, split: test}]"])
    assert [(s.path, s.weight, s.split) for s in config.data.preferences] == [
        ("a.jsonl", 1.0, None),
        ("b/*.csv", 0.5, "test"),
    ]
    assert load_config({}, ["data.preferences=a.jsonl"]).prompt_sources[0].path == "a.jsonl"


def test_every_field_is_documented():
    def walk(node):
        for name, inner in node.get("properties", {}).items():
            assert inner.get("description"), name
        for inner in node.get("$defs", {}).values():
            walk(inner)

    walk(schema())


@settings(max_examples=20)
@given(st.integers(4, 10**6), st.floats(1e-9, 1.0), st.booleans(), st.text(min_size=1, max_size=20))
def test_any_config_round_trips(updates, lr, rslora, folder):
    config = Config.model_validate(
        {"coarse": {"updates": updates, "lr": lr}, "lora": {"rslora": rslora}, "run": {"dir": folder}}
    )
    assert load_config(yaml.safe_load(config.to_yaml())) == config


BAD = [
    ("coarse.upates=3", "'coarse.updates'"),
    ("lenght.start=3", "unknown key 'lenght'"),
    ("start=3", "'coarse.length.start'"),
    ("coarse.updates=0", "coarse.updates=0"),
    ("coarse.updates=many", "coarse.updates='many'"),
    ("coarse.lr=nan", "coarse.lr"),
    ("coarse.length.start=0", "coarse.length.start=0"),
    ("coarse.length.max=3", "coarse.length.max=3 is below coarse.length.start=128"),
    ("coarse.length.mode=cubic", "coarse.length.mode"),
    ("coarse.rollouts=7", "no multiple of coarse.minibatches"),
    ("coarse.updates=3", "not above coarse.critic_warmup=3"),
    ("coarse.length.multiple=65", "coarse.length.multiple=65 is above coarse.length.step=64"),
    ("fine.ratio=0", "above 0"),
    ("fine.ratios=[0.0]", "above 0"),
    ('model.stop=[""]', "model.stop"),
    ("lora.target_modules=[]", "lora.target_modules"),
    ("fine.ratio=-1", "fine.ratio"),
    ("fine.ratio=inf", "fine.ratio"),
    ("fine.ratios=[]", "fine.ratios"),
    ("model.base=x", "must both be `toy`"),
    ("model.prompt_template=hello", "model.prompt_template"),
    ("lora.target_modules=[lm_head]", "lm_head"),
    ("coarse=3", "coarse is a int"),
    ("data.preferences=3", "data.preferences"),
    ("data.preferences=[{pth: a}]", "data.preferences.0"),
    ("run.seed=-1", "run.seed=-1"),
    ("model.base=smollm", "did you mean 'smollm2'?"),
    ("model.instruct=SmolLM2", "did you mean 'smollm2'?"),
    ("nonsense", "key=value"),
    ("coarse.updates={", "YAML"),
    ("coarse.updates.deep=1", "coarse.updates"),
]


@pytest.mark.parametrize(("override", "words"), BAD)
def test_bad_settings(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config({}, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no config file"), ("a: [", ":"), ("- a\n- b\n", "a list"), ("coarse:\n  - 3\n", "coarse is a list")],
)
def test_bad_files(tmp_path, text, words):
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert words in str(caught.value) and "c.yaml" in str(caught.value) and "\n" not in str(caught.value)
