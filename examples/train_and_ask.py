"""The Python API: train on the toy world (or any config), read the figures, ask all actors one question.

python examples/train_and_ask.py [CONFIG] [RUN]
"""

import sys

import lite_c2f

config = lite_c2f.load_config(sys.argv[1] if len(sys.argv) > 1 else "configs/toy.yaml")
run = sys.argv[2] if len(sys.argv) > 2 else config.run.dir

summary = lite_c2f.train(config, run)  # skips stages that are already published
for actor, figures in summary["actors"].items():
    print(f"{actor:<9} reward {figures['reward']:+.2f}  tokens {figures['tokens']:.0f}  ended {figures['eos']:.2f}")

chat = lite_c2f.Chat(run)
question = "Tom has 3 apples, first finds 4, second loses 2, third buys 6. How many now?"
for pane, answer in chat.answer(question, max_tokens=96, temperature=0).items():
    print(f"\n{pane}: {answer.text}")
