"""Stage 2: PPO with Continuous Maximization, which makes the Coarse Actor."""
