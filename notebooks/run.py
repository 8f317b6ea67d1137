"""Execute every notebook, each in a fresh kernel, and fail with the cell that fails.

python notebooks/run.py           run and throw the results away
python notebooks/run.py --write   run and keep the outputs in the files
"""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent

for path in sorted(HERE.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path.name}: {cells} code cells ran")
    if "--write" in sys.argv:
        for cell in notebook.cells:
            cell.metadata = {}  # no time stamps: a rerun that changes nothing should change nothing
        nbformat.write(notebook, path)
