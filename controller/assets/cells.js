// A large fleet as a picture: a cell for each worker, filled as far as the worker is.
//
// The cells of all sites are one stop of the Tab key; the arrow keys go from cell to cell.

import { el, reconcile, setAttribute, setProperty, setText } from "/assets/dom.js";
import { bySite } from "/assets/picture.js";
import { count, fullness, queueWords, workerWords } from "/assets/words.js";

export class Cells {
  #summary = el("div.cells-head");
  #sites = el("div.cells-sites");
  #known = new Map();
  #heads = new Map();
  #cells = new Map();
  #current = null;

  constructor() {
    this.node = el("div.cells-map", {}, this.#summary, this.#sites);
    this.#sites.addEventListener("keydown", (event) => this.#key(event));
    this.#sites.addEventListener("focusin", (event) => event.target.dataset.node && this.#focusable(event.target));
  }

  draw(fleet, matches, isFiltered) {
    const drawn = this.#cells.size;
    if (fleet.members || drawn === 0) {
      this.#place(fleet);
    }
    this.#drawHeads(fleet);
    for (const [id, cell] of this.#cells) {
      if (drawn === 0 || isFiltered || fleet.changed.has(id)) {
        const worker = fleet.nodes.get(id);
        updateCell(cell, worker);
        setAttribute(cell, "data-dim", !matches(worker));
      }
    }
  }

  #drawHeads(fleet) {
    const heads = [...fleet.gateways(), fleet.controller()].filter(Boolean);
    const make = (node) => el(`button.node.${node.kind}`, { type: "button", "data-node": node.id }, el("span.node-name", { dir: "auto", text: node.id }), el("span.node-words.muted.number"));
    reconcile(this.#summary, this.#heads, heads, (node) => node.id, make);
    for (const node of heads) {
      const words = node.kind === "controller" ? `${count(node.waiting)} waiting` : `${count(node.tickets)} in flight`;
      setText(this.#heads.get(node.id).lastChild, words);
    }
  }

  #place(fleet) {
    const sites = bySite(fleet);
    this.#cells.forEach((_, id) => fleet.nodes.has(id) || this.#cells.delete(id));
    reconcile(this.#sites, this.#known, sites, (site) => site.name, makeSite);
    for (const { name, workers } of sites) {
      const site = this.#known.get(name);
      setText(site.querySelector(".site-count"), workerWords(workers));
      site.known ??= new Map();
      reconcile(site.querySelector(".cells"), site.known, workers, (worker) => worker.id, (worker) => this.#cell(worker));
    }
    if (!this.#current?.isConnected) {
      this.#focusable(this.#sites.querySelector(".cell"));
    }
  }

  #cell(worker) {
    const cell = el("button.cell", { type: "button", tabindex: -1, "data-node": worker.id }, el("i.mark", { "aria-hidden": "true" }));
    this.#cells.set(worker.id, cell);
    return cell;
  }

  #focusable(cell) {
    this.#current?.setAttribute("tabindex", "-1");
    cell?.setAttribute("tabindex", "0");
    this.#current = cell;
  }

  #key(event) {
    const cells = [...this.#sites.querySelectorAll(".cell")];
    const at = cells.indexOf(event.target);
    const to = at < 0 ? null : next(cells, at, event.key);
    if (to) {
      event.preventDefault();
      to.focus();
    }
  }
}

/** The cell to which a key leads: beside, or the nearest in the next row. */
function next(cells, at, key) {
  switch (key) {
    case "ArrowRight":
      return cells[at + 1];
    case "ArrowLeft":
      return cells[at - 1];
    case "Home":
      return cells[0];
    case "End":
      return cells.at(-1);
    case "ArrowDown":
      return row(cells.slice(at + 1), cells[at]);
    case "ArrowUp":
      return row(cells.slice(0, at).reverse(), cells[at]);
    default:
      return null;
  }
}

function row(others, from) {
  const start = others.findIndex((cell) => cell.offsetTop !== from.offsetTop);
  if (start < 0) {
    return null;
  }
  const top = others[start].offsetTop;
  const same = others.slice(start).filter((cell) => cell.offsetTop === top);
  const distance = (cell) => Math.abs(cell.offsetLeft - from.offsetLeft);
  return same.reduce((best, cell) => (distance(cell) < distance(best) ? cell : best));
}

function updateCell(cell, worker) {
  const words = `${worker.id}, ${worker.state}, ${queueWords(worker)} in flight`;
  setAttribute(cell, "data-state", worker.state);
  setAttribute(cell.firstChild, "data-state", worker.state);
  setAttribute(cell, "aria-label", words);
  setAttribute(cell, "title", words);
  setProperty(cell, "--full", fullness(worker).toFixed(2));
}

function makeSite({ name }) {
  const title = el("p.site-title", {}, el("span.site-name", { dir: "auto", text: name }), el("span.site-count.muted.number"));
  return el("div.cells-site", { role: "group", "aria-label": `Site ${name}` }, title, el("div.cells"));
}
