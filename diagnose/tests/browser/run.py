"""Pages in a real browser: see scripts/browser-test.sh."""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inputs  # noqa: E402
from devtools import Browser, Page  # noqa: E402

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
EXAMPLE = "examples/data/smollm2_gpl3.safetensors"
WIDTHS = [390, 1024, 1920]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "judge.js")) as source:
    JUDGE = source.read()

passed, failed = 0, []


def check(what, holds, message=""):
    global passed
    if holds:
        passed += 1
    else:
        failed.append(what)
        print(f"FAILED {what}: {message}", flush=True)


def becomes(page, what, expression, wanted):
    """What input brings about: the browser answers it before the page has handled it."""
    holds = page.until(f"({expression}) === {json.dumps(wanted)}")
    check(what, holds, None if holds else page.ask(expression))


def judged(page, what):
    verdict = page.ask(JUDGE)
    check(f"{what}: readable", not verdict["found"] and verdict["texts"] > 20, verdict)
    complaints = page.complaints()
    check(f"{what}: console and network", not complaints, complaints)


def looks(browser, name, path):
    for width in WIDTHS:
        for dark in [False, True]:
            page = Page(browser, path, width=width, dark=dark)
            judged(page, f"{name}, {width} px, {'dark' if dark else 'light'}")
            page.close()


HEADINGS = "[...document.querySelectorAll('h2, h3')].map(h => h.textContent.trim()).join('\\n')"
SHOWN = "[...document.querySelectorAll('.head')].filter(h => h.checkVisibility()).map(h => h.id).join()"
MARKED = "document.querySelector('[aria-current]')?.hash"
LEGENDS = (
    "[...document.querySelectorAll('.legend')].filter(l => l.checkVisibility()).map(l => l.className).join()"
)


def works(browser, path):
    """Click, keys, the switch of quantities; then the same without JavaScript."""
    page = Page(browser, path)
    first = page.ask(SHOWN)
    check("one head to begin with", first.startswith("h") and "," not in first, first)
    page.click(".grid a[href='#h5']")
    becomes(page, "a click shows that head", SHOWN, "h5")
    becomes(page, "and its address", "location.hash", "#h5")
    becomes(page, "the cell is marked", MARKED, "#h5")
    stops = page.ask("[...document.querySelectorAll('.grid a')].filter(a => a.tabIndex === 0).length")
    check("one stop for the tab key", stops == 1, stops)
    # Or the page scrolls another cell under the pointer, whose values the readout then rightly says.
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    page.ask("document.querySelector('.grid a[href=\"#h0\"]').focus()")
    for key in ["ArrowRight", "ArrowDown"]:
        page.key(key)
    becomes(page, "arrows move", "document.activeElement.hash", "#h4")
    readout = "document.getElementById('readout').textContent"
    follows = page.until(f"{readout}.includes('layer10 head 1')")
    check("the readout follows", follows, page.ask(readout))
    page.key("Enter", "\r")
    becomes(page, "Enter shows that head", SHOWN, "h4")
    ground = "getComputedStyle(document.querySelector('.grid a[href=\"#h4\"]')).backgroundColor"
    text = (
        "[...document.querySelectorAll('.grid a[href=\"#h4\"] i')]"
        ".filter(i => i.checkVisibility()).map(i => i.textContent).join()"
    )
    seen = set()
    for metric in range(6):
        page.click(f"label[for=m{metric}]")
        becomes(page, f"quantity {metric} has its legend", LEGENDS, f"legend l{metric}")
        seen.add((page.ask(ground), page.ask(text)))
        judged(page, f"quantity {metric}")
    check("every quantity looks different", len(seen) >= 5, seen)
    page.ask("document.getElementById('m0').focus()")
    page.key("ArrowRight")
    becomes(page, "quantities by arrow key", "document.getElementById('m1').checked", True)
    page.close()

    page = Page(browser, path, width=1024)
    wide = page.ask(
        "(box => [box.scrollWidth, box.clientWidth])(document.getElementById('values').parentElement)"
    )
    check("the table fits 1024 px", wide[0] <= wide[1], wide)
    page.close()

    page = Page(browser, path, fragment="#h6")
    becomes(page, "a link to a head marks its cell", MARKED, "#h6")
    page.close()

    page = Page(browser, path, script=False, fragment="#h7")
    becomes(page, "a link to a head without JavaScript", SHOWN, "h7")
    page.click(".grid a[href='#h2']")
    becomes(page, "a click without JavaScript", SHOWN, "h2")
    page.click("label[for=m4]")
    becomes(page, "quantities without JavaScript", LEGENDS, "legend l4")
    check("nothing ran", page.ask("document.querySelector('[aria-current]')") is None)
    judged(page, "without JavaScript")
    page.close()


def unpacks(browser, path):
    """A page of so many heads that all but one are packed."""
    size = os.path.getsize(path)
    check("30 x 32 heads stay under 3 MB", size < 3_000_000, size)
    page = Page(browser, path, width=1024, fragment="#h700")
    becomes(page, "a link to a packed head", SHOWN, "h700")
    judged(page, "a packed head")
    page.click(".grid a[href='#h3']")
    becomes(page, "a click unpacks a head", SHOWN, "h3")
    check("its charts are drawn", page.ask("document.querySelectorAll('#h3 svg.c path').length") > 15)
    page.click(".grid a[href='#h700']")
    becomes(page, "and back", SHOWN, "h700")
    page.close()
    page = Page(browser, path, script=False, fragment="#h700")
    check(
        "without JavaScript there is one head and a word why",
        page.ask(SHOWN) == page.ask("document.querySelector('.first').id"),
    )
    page.close()


def prints(browser, name, path, folder, wanted, most):
    page = Page(browser, path, dark=True)
    pdf = os.path.join(folder, f"{name}.pdf")
    data = page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    with open(pdf, "wb") as file:
        file.write(base64.b64decode(data))
    headings = set(page.ask(HEADINGS).split("\n"))
    page.close()
    check(f"{name}: the page has headings", {"The answer", "Provenance"} <= headings, headings)
    text = subprocess.run(
        ["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = text.count("\f")
    check(f"{name}: printed on 1 to {most} pages", 1 <= pages <= most, pages)
    lacks = [word for word in wanted if word not in text]
    check(f"{name}: printed text", not lacks, f"lacks {lacks}")
    lines = [len(part.strip().splitlines()) for part in text.split("\f")[:-1]]
    check(f"{name}: no page is empty", min(lines) > 2, lines)
    ends = [part.strip().splitlines()[-1].strip() for part in text.split("\f")[:-1] if part.strip()]
    alone = [end for end in ends if end in headings or end.lstrip("▼▾ ").startswith("The same as a table")]
    check(f"{name}: no heading ends a page", not alone, alone)


def screenshot(browser, path, target, width, height, dark=False, scroll=None, fragment=""):
    page = Page(browser, path, width=width, height=height, dark=dark, fragment=fragment)
    page.ask(f"document.querySelector({scroll!r}).scrollIntoView()" if scroll else "scrollTo(0, 0)")
    look = {"format": "webp", "quality": 88} if target.endswith(".webp") else {"format": "png"}
    data = page.call("Page.captureScreenshot", **look)["data"]
    with open(target, "wb") as file:
        file.write(base64.b64decode(data))
    page.close()


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--critbeta", required=True)
    args.add_argument("--chromium", required=True)
    args.add_argument("--keep", help="leave pages, PDFs and screenshots in this folder")
    args = args.parse_args()
    temporary = tempfile.TemporaryDirectory()
    folder = os.path.abspath(args.keep or temporary.name)
    os.makedirs(folder, exist_ok=True)
    cases = {"example": [EXAMPLE], **inputs.write(folder)}
    pages = {}

    def report(name, *arguments):
        """Writes the page `name` with the command."""
        pages[name] = os.path.join(folder, f"{name}.html")
        critbeta(*arguments, "--html", pages[name])

    def critbeta(*arguments):
        subprocess.run([args.critbeta, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    for name, arguments in cases.items():
        report(name, "diagnose", *arguments)
    rows = os.path.join(folder, "rows.parquet")
    critbeta("diagnose", EXAMPLE, "--rows", rows)
    report("records", "report", rows)
    empty = os.path.join(folder, "empty.jsonl")
    open(empty, "w").close()
    report("empty", "report", empty)
    browser = Browser(args.chromium)
    try:
        works(browser, pages["example"])
        unpacks(browser, pages["grid"])
        for name, path in pages.items():
            looks(browser, name, path)
        prints(
            browser,
            "example",
            pages["example"],
            folder,
            ["The answer", "critical β", "Gap count", "Glossary", "SHA-256", "layer29", "left out on paper"],
            5,
        )
        prints(
            browser,
            "poisoned",
            pages["poisoned"],
            folder,
            ["None of the 20 rows can be measured", "Citation"],
            4,
        )
        if args.keep:
            for width in WIDTHS:
                for dark in [False, True]:
                    look = "dark" if dark else "light"
                    screenshot(
                        browser,
                        pages["example"],
                        os.path.join(folder, f"example-{width}-{look}.png"),
                        width,
                        1400,
                        dark,
                    )
            # What docs/img has.
            screenshot(browser, pages["example"], os.path.join(folder, "report.webp"), 1200, 1140)
            screenshot(
                browser, pages["example"], os.path.join(folder, "head.webp"), 1200, 1320, True, "#h7", "#h7"
            )
            screenshot(browser, pages["grid"], os.path.join(folder, "grid.png"), 1280, 1400, scroll="#map")
            screenshot(browser, pages["hostile"], os.path.join(folder, "hostile.png"), 1024, 2600)
    finally:
        browser.close()
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(bool(failed))


main()
