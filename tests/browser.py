"""Chromium for tests of pages, and names that a page may be given."""

import shutil
import time

import pytest

HOSTILE = [
    '<script>window.hit = 1</script>',
    '</script><script>window.hit = 1</script>',
    '<img src=x onerror="window.hit = 1">',
    '"quotes" & \'more\' <!-- $info ${x} \\',
    'line\nbreak \u2028 猫 \u202e',
]


def open_browser(*options: str):
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    programs = shutil.which('chromium'), shutil.which('chromedriver')
    if not all(programs):
        pytest.skip('chromium and chromedriver are not installed')
    settings = webdriver.ChromeOptions()
    settings.binary_location = programs[0]
    for option in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1280,900', *options):
        settings.add_argument(option)
    return webdriver.Chrome(settings, webdriver.ChromeService(programs[1]))


def wait(browser, script: str, seconds: float = 120):
    """What ``script`` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < end, browser.execute_script('return document.body.innerText')
        time.sleep(0.05)
    return found
