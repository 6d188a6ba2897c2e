"""Two tasks in words that the pico models know: one of choices, one of answers."""

DOCS = [
    {"question": f"w{n} w{n + 1}" + " w3" * (n % 4), "right": f"w{n + 20}", "wrong": f"w{n + 30}" + f" w{n}" * (n % 2)}
    for n in range(10)
]
CHOICES = {
    "task": "pico_choices",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{[right, wrong]}}",
    "doc_to_target": 0,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
ANSWERS = {
    "task": "pico_answers",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{right}}",
    "generation_kwargs": {"until": ["w7"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
