"""Tuning open models: chat data sets, adapters or every weight on Ray Train, durable checkpoints.

`dataset.py` reads and splits data, `config.py` holds the arguments, `model.py` and `adapter.py`
build what is trained, `chat.py` turns conversations into tokens, `packing.py` puts them end to
end, `batches.py` and `schedule.py` decide what is trained when, `objective.py` and `loss.py` say
what is made small, `loop.py` trains, `checkpoint.py` and `run.py` keep a run's state on disk,
`train.py` puts all of it on Ray Train.
"""

import logging

# It tells every process that imports PEFT on a CPU about a package that it can do without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
