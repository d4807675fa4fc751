"""Trains as many arms as there are lists of arguments in a JSON file, in the processes of one launch."""

import json
import sys
from pathlib import Path

from epicrisis.commands import main

for arguments in json.loads(Path(sys.argv[1]).read_text()):
    if code := main(["train", *arguments]):
        sys.exit(code)
