"""What a comparison that is made again says has changed."""

from lite_c2f.pipeline.comparison import differences


def test_what_has_changed_since_the_last_comparison_is_named():
    made_of = {"coarse": "a", "fine": "b", "reward": "c", "sources": {"style": "d", "right": "e"}, "mix": {"n": 1}}
    before = {"settings": {"prompts": 10}, "made_of": made_of}
    assert differences(before, {"settings": {"prompts": 11}, "made_of": made_of}) == "evaluation"
    assert differences(before, before | {"made_of": made_of | {"sources": {"style": "x", "right": "e"}}}) == (
        "file of reward style"
    )
    others = {"coarse": "x", "fine": "b", "reward": "x", "mix": {"n": 2}}
    assert differences(before, before | {"made_of": others}) == "coarse actor, reward model, scale of rewards"
    assert differences(before, before | {"made_of": {"coarse": "a", "fine": "b"}}) == "set of rewards"
