// Tabs, as the ARIA practices describe them: the arrow keys go from one to the next.

import { byId, setAttribute } from "/assets/dom.js";

export class Tabs {
  #names;
  #enabled;

  constructor(names) {
    this.#names = names;
    this.#enabled = [];
    for (const name of names) {
      this.#tab(name).addEventListener("click", () => this.select(name));
      this.#tab(name).addEventListener("keydown", (event) => this.#key(event, name));
    }
  }

  #tab(name) {
    return byId(`tab-${name}`);
  }

  /** The tabs that there is a model for; the first of them is opened where the open one has none. */
  enable(names) {
    this.#enabled = names;
    this.#names.forEach((name) => {
      this.#tab(name).disabled = !names.includes(name);
      setAttribute(this.#tab(name), "title", names.includes(name) ? null : "no model here can do that");
    });
    const open = this.#names.find((name) => this.#tab(name).getAttribute("aria-selected") === "true");
    if (names.length > 0 && !names.includes(open)) {
      this.select(names[0]);
    }
  }

  select(selected) {
    for (const name of this.#names) {
      const isSelected = name === selected;
      setAttribute(this.#tab(name), "aria-selected", String(isSelected));
      setAttribute(this.#tab(name), "tabindex", isSelected ? null : "-1");
      byId(`panel-${name}`).hidden = !isSelected;
    }
  }

  #key(event, name) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const { length } = this.#enabled;
    if (step && length > 0) {
      event.preventDefault();
      const next = this.#enabled[(this.#enabled.indexOf(name) + step + length) % length];
      this.select(next);
      this.#tab(next).focus();
    }
  }
}
