// The same request for a terminal.

import { byId, el } from "/assets/dom.js";
import { currentKey } from "/assets/key.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command; a key stands there as the name of a variable, so that it is not copied about. */
export function command(path, body) {
  const key = currentKey() ? [`-H "authorization: Bearer $MUSTER_API_KEY"`] : [];
  const lines = [`curl -N ${quoted(location.origin + path)}`, `-H 'content-type: application/json'`, ...key, `-d ${quoted(JSON.stringify(body, null, 2))}`];
  return lines.join(" \\\n  ");
}

/**
 * A button that shows and hides the command.
 * @param {() => {path: string, body: object}} what asked for whenever it is shown
 */
export class CurlView {
  #button;
  #view;
  #what;

  constructor(button, view, what) {
    this.#button = byId(button);
    this.#view = byId(view);
    this.#what = what;
    this.#button.addEventListener("click", () => {
      this.#view.hidden = !this.#view.hidden;
      this.#button.setAttribute("aria-expanded", String(!this.#view.hidden));
      this.refresh();
    });
  }

  refresh() {
    if (this.#view.hidden) {
      return;
    }
    const { path, body } = this.#what();
    const text = command(path, body);
    const code = el("pre", { tabindex: 0, "aria-label": "The request as a curl command" }, el("code", { text }));
    const copy = el("button.button.small", { type: "button", text: "Copy" });
    copy.addEventListener("click", () => copyText(text, copy));
    this.#view.replaceChildren(code, copy);
  }
}

/** Browsers give the clipboard to pages from https and from this machine only. */
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Cannot copy here";
  }
}
