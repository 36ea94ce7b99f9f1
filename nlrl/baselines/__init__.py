"""What the method is compared with (arXiv 2411.14251, section 5), each through the same games and the same grading.

| baseline | where |
|---|---|
| uniformly random moves | `nlrl.agents.random_agent` |
| direct prompting: the plain policy of a model that was not trained | `nlrl.agents.plain_agent` |
| Q^L of every legal move from the plain question, then I: no look-ahead | `q_improve` |
| PPO over the legal moves' token logits | `episodes`, `move_logits`, `ppo` |
| GRPO from TRL, rewarded by playing on | `grpo` |

`nlrl.baselines.report.evaluate` plays any agent and grades it; learners give an agent when they have learned.
"""
