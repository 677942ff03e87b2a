"""Tuning open models: chat data sets, LoRA on Ray Train, checkpoints that survive a kill.

`dataset.py` reads and splits data, `config.py` holds the arguments, `chat.py` turns conversations
into tokens, `batches.py` and `schedule.py` decide what is trained when, `objective.py` and
`lora.py` train, `checkpoint.py` and `run.py` keep a run's state on disk, `adapter.py` writes the
result, `train.py` puts all of it on Ray Train.
"""
