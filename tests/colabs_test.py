"""The notebooks run from top to bottom on a CPU, and are kept without outputs."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
# What a notebook prints when everything in it worked.
EXPECTED = {
  'masked_lm': ('8000 texts', '| masked_lm ', '-> ', '(6, 128) float32'),
  'simclr': ('1600 files in images', '| simclr ', '(6, 128) float32'),
}
SECONDS = 90  # what a whole notebook may take on two quiet cores; here the limit of each cell


@pytest.mark.parametrize('path, devices', [
  pytest.param(path, devices, id=f'{path.stem}-{devices}',
               marks=() if (path.stem, devices) == ('simclr', 1) else pytest.mark.slow)
  for path in NOTEBOOKS for devices in (1, 8)])
def test_runs(path, devices, tmp_path, monkeypatch):
  """Offline: what would install or download something fails."""
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', str(devices))
  for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('MPLBACKEND', 'agg')
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name='python3',
                          resources={'metadata': {'path': str(tmp_path)}}).execute()
  printed = '\n'.join(output.get('text', '') for cell in notebook.cells if cell.cell_type == 'code'
                      for output in cell.outputs)
  expected = (f', {devices} x cpu', *EXPECTED[path.stem])
  assert [text for text in expected if text not in printed] == []


@each_notebook
def test_is_kept_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert cell.cell_type != 'code' or (not cell.outputs and cell.execution_count is None)
