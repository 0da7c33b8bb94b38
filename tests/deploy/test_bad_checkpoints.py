"""The tools of deployment refuse what is no checkpoint, in one line, and run no code from it."""

import pytest
from conftest import TINY, only_line
from hostile import BAD_CHECKPOINTS, write_bad_checkpoint


@pytest.mark.parametrize('tool', ['export', 'quantize', 'predict'])
@pytest.mark.parametrize('kind', BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_and_run_no_code(run_tool, tiny_run, digits, tmp_path, tool, kind):
    checkpoint, message = write_bad_checkpoint(tmp_path, kind, tiny_run / 'epoch_4.pth')
    photos = digits / 'train' / '0'
    arguments = {
        'export': [TINY, checkpoint, tmp_path / 'out.onnx'],
        'quantize': [TINY, checkpoint, tmp_path / 'out.onnx', '--calib', photos, '--num-calib', '8'],
        'predict': [TINY, checkpoint, photos],
    }[tool]
    code, printed = run_tool(tool, *arguments)
    error = only_line(printed)
    assert code == 1 and message in error and str(checkpoint) in error
    assert list(tmp_path.iterdir()) == [checkpoint]
