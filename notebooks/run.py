"""Execute the notebooks, each in a fresh kernel, and fail with the cell that fails.

python notebooks/run.py                       run all of them and throw the results away
python notebooks/run.py --write first_steps   those whose name holds one of the words, and keep the outputs
"""

import pathlib
import sys
import time

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent

words = [argument for argument in sys.argv[1:] if argument != "--write"]
paths = [path for path in sorted(HERE.glob("*.ipynb")) if not words or any(word in path.name for word in words)]
if not paths:
    sys.exit(f"no notebook has {' or '.join(words)} in its name")
for path in paths:
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": 600, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(HERE)}}, **options).execute()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path.name}: {cells} code cells ran in {time.perf_counter() - start:.0f} s", flush=True)
    if "--write" in sys.argv:
        for cell in notebook.cells:
            cell.metadata = {}  # no time stamps: a rerun that changes nothing should change nothing
        nbformat.write(notebook, path)
