// The head of the page: which controller this is, whether it is heard, and what is wrong where it is not.

import { byId, el, setAttribute, setText } from "/assets/dom.js";
import { currentKey, forgetKey, onKey } from "/assets/key.js";
import { STATES, clock, counted, moment, span } from "/assets/words.js";
import { stateMark } from "/assets/picture.js";

export class Header {
  #lost = null;

  constructor(retry) {
    byId("banner-button").addEventListener("click", retry);
    byId("forget-key").addEventListener("click", forgetKey);
    const showKey = () => {
      byId("forget-key").hidden = !currentKey();
    };
    onKey(showKey);
    showKey();
    setInterval(() => this.#say(), 1000);
  }

  draw(fleet) {
    const controller = fleet.controller();
    if (controller) {
      const up = span(fleet.now() - controller.started_ms);
      setText(byId("facts"), `${controller.version} · ${controller.policy} · up ${up}`);
      setAttribute(byId("facts"), "title", `since ${moment(controller.started_ms)}`);
    }
  }

  /** The controller is heard. */
  live() {
    this.#lost = null;
    byId("banner").hidden = true;
    document.body.removeAttribute("data-stale");
    this.#pulse("live", "live");
  }

  /** It is not asked while nobody looks; what is shown is as it was. */
  asleep() {
    this.#pulse("wait", "paused");
  }

  /** It is not, and has not been since the first time that this was said. */
  lost(reason, pause, lastHeard) {
    const since = this.#lost?.since ?? lastHeard ?? Date.now();
    this.#lost = { since, reason, until: pause === null ? null : Date.now() + pause, isStale: lastHeard !== null };
    setAttribute(document.body, "data-stale", lastHeard !== null);
    this.#pulse("lost", pause === null ? "no key" : "no contact");
    setText(byId("banner-button"), pause === null ? "Give a key" : "Try now");
    setText(byId("banner-title"), this.#title());
    byId("banner").hidden = false;
    this.#say();
  }

  #title() {
    if (this.#lost.until === null) {
      return "This controller wants a key.";
    }
    const { since, isStale } = this.#lost;
    return isStale ? `No contact with the controller since ${clock(since)}.` : "No contact with the controller.";
  }

  #say() {
    if (!this.#lost) {
      return;
    }
    const { since, reason, until, isStale } = this.#lost;
    const state = isStale ? `What is shown is ${span(Date.now() - since)} old.` : "";
    const next = until === null ? "" : `It is tried again ${until > Date.now() ? `in ${span(until - Date.now() + 999)}` : "now"}.`;
    setText(byId("banner-text"), [state, `(${reason})`, next].filter(Boolean).join(" "));
  }

  #pulse(state, word) {
    setAttribute(byId("pulse"), "data-pulse", state);
    setText(byId("pulse-word"), word);
  }
}

/** How many workers are in which state; a click shows only those. */
export class Chips {
  state = null;
  #chips = new Map();
  #changed;

  constructor(changed) {
    this.#changed = changed;
    byId("chips").addEventListener("click", (event) => {
      const chip = event.target.closest("[data-chip]");
      if (chip) {
        const state = chip.dataset.chip;
        this.state = state === "all" || state === this.state ? null : state;
        this.#changed();
      }
    });
  }

  draw(workers) {
    const counts = new Map();
    workers.forEach((worker) => counts.set(worker.state, (counts.get(worker.state) ?? 0) + 1));
    this.#chip("all", workers.length);
    for (const state of Object.keys(STATES)) {
      this.#chip(state, counts.get(state) ?? 0);
    }
    setText(byId("legend"), this.state ? `${this.state}: ${STATES[this.state]}. ${counted(counts.get(this.state) ?? 0, "worker")}.` : "");
  }

  #chip(state, many) {
    let chip = this.#chips.get(state);
    if (!chip) {
      const mark = state === "all" ? null : stateMark(state);
      chip = el("button.chip", { type: "button", "data-chip": state, title: STATES[state] ?? null }, mark, el("span", { text: state }), el("span.number.chip-count"));
      this.#chips.set(state, chip);
      byId("chips").append(chip);
    }
    setText(chip.lastChild, many);
    chip.hidden = many === 0 && state !== "all" && state !== "ready" && state !== this.state;
    setAttribute(chip, "aria-pressed", String(state === (this.state ?? "all")));
  }
}
