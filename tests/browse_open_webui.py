"""Somebody in a real browser who uses Open WebUI: run by a Python that has playwright, with a verb, the
page's address and who it is. Says what was seen as JSON."""

from __future__ import annotations

import json
import sys

from playwright.sync_api import Page, sync_playwright

PASSWORD = "a long pass phrase 1"


def sign_up(page: Page, name: str) -> None:
    started = page.get_by_role("button", name="Get started")
    started.or_(page.get_by_role("button", name="Sign up")).first.click()
    page.fill("#name", name)
    page.fill("#email", f"{name.lower()}@example.org")
    page.fill("#password", PASSWORD)
    page.click("button[type=submit]")


def log_in(page: Page, name: str) -> None:
    page.fill("#email", f"{name.lower()}@example.org")
    page.fill("#password", PASSWORD)
    page.click("button[type=submit]")


def ask(page: Page, question: str) -> str:
    """The whole of the answer."""
    news = page.get_by_role("button", name="Okay, Let's Go!")
    box = page.locator("#chat-input")
    box.wait_for()
    page.wait_for_timeout(2000)
    if news.is_visible():
        news.click()
    box.click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    page.get_by_text("Response complete").wait_for(state="attached")
    return page.locator(".chat-assistant").last.inner_text().strip()


def main(verb: str, url: str, name: str, question: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        outside: list[str] = []
        page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(url) else None)
        page.set_default_timeout(90_000 if verb == "log-in" or question else 15_000)
        page.goto(url)
        (sign_up if verb == "sign-up" else log_in)(page, name)
        said = ask(page, question) if question else ""
        if not question:
            page.wait_for_timeout(5000)
        text = page.inner_text("body")
        page.goto(url)
        page.wait_for_timeout(3000)
        print(
            json.dumps({"answer": said, "page": text, "later": page.inner_text("body"), "outside": outside})
        )
        browser.close()


main(*sys.argv[1:])
