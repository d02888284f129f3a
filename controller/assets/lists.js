// Models, changes of state, warnings and the peers file: lists that are short.

import { byId, el, reconcile, setAttribute, setText } from "/assets/dom.js";
import { stateMark } from "/assets/picture.js";
import { KINDS, ago, clock, count, counted, moment } from "/assets/words.js";

class Model {
  constructor(model) {
    const name = el("span.model-name", { dir: "auto", title: model.name, text: model.name });
    this.kind = el("span.tag");
    this.context = el("span.muted.number");
    this.words = el("span.model-words.number");
    this.more = el("p.sub.muted", { dir: "auto" });
    this.node = el("li.model", { "data-model": model.name }, el("p.model-head", {}, name, this.kind, this.context), this.words, this.more);
  }

  update(model) {
    const isAlias = (model.stands_for ?? []).length > 0;
    setText(this.kind, isAlias ? "alias" : (KINDS[model.kind] ?? "any"));
    setText(this.context, model.context_length ? `${count(model.context_length)} tokens` : "");
    const numbers = [counted(model.workers, "worker"), `${count(model.tickets)} in flight`, `${count(model.waiting)} waiting`];
    setText(this.words, numbers.join(" · "));
    setAttribute(this.node, "data-short", model.workers === 0 || model.waiting > 0);
    const more = [];
    if (isAlias) {
      more.push(`stands for ${model.stands_for.join(", ")}`);
    }
    if ((model.fallbacks ?? []).length > 0) {
      more.push(`falls back to ${model.fallbacks.join(", then ")}`);
    }
    if (model.policy) {
      more.push(`picked by ${model.policy}`);
    }
    setText(this.more, more.join("; "));
  }
}

function stateBadge(state) {
  const word = state ?? "unknown";
  return el("span.badge", { "data-state": word }, stateMark(word), el("span.state-word", { text: word }));
}

function makeChange(change) {
  const time = el("time.number.muted", { title: moment(change.at_ms), datetime: new Date(change.at_ms).toISOString(), text: clock(change.at_ms) });
  const name = el("button.link", { type: "button", dir: "auto", "data-node": change.worker, title: change.worker, text: change.worker });
  const arrow = el("span.muted", { "aria-hidden": "true", text: "→" });
  const to = change.to ? stateBadge(change.to) : el("span.muted", { text: "forgotten" });
  const states = el("span.change-states", {}, change.from ? stateBadge(change.from) : null, change.from ? arrow : null, change.from ? el("span.hidden-text", { text: "became" }) : null, to);
  const reason = change.reason ? el("p.sub.muted", { dir: "auto", text: change.reason }) : null;
  const when = el("span.change-time", {}, time, el("span.ago.muted"));
  return el("li.change", { "data-change": change.number }, when, el("div.change-what", {}, el("p.change-line", {}, name, states), reason));
}

/** One of several lines is set as in a terminal: it may point at a place in a file. */
export function makeWarning(text) {
  const words = el(text.includes("\n") ? "pre.mono" : "p", { dir: "auto", text });
  return el("li.warning", {}, stateMark("suspect"), words);
}

export class Lists {
  #models = new Map();
  #modelNodes = new Map();
  #changes = new Map();
  #warnings = new Map();

  draw(fleet) {
    this.#drawModels(fleet.models);
    this.#drawChanges(fleet);
    this.#drawWarnings(fleet);
    this.#drawPeers(fleet);
  }

  #drawModels(models) {
    byId("models-empty").hidden = models.length > 0;
    const make = (model) => {
      const made = new Model(model);
      this.#models.set(model.name, made);
      return made.node;
    };
    reconcile(byId("models"), this.#modelNodes, models, (model) => model.name, make);
    models.forEach((model) => this.#models.get(model.name).update(model));
  }

  #drawChanges(fleet) {
    byId("changes-empty").hidden = fleet.changes.length > 0;
    const keyOf = (change) => `${fleet.epoch} ${change.number}`;
    reconcile(byId("changes"), this.#changes, fleet.changes, keyOf, makeChange);
    const now = fleet.now();
    fleet.changes.forEach((change) => setText(this.#changes.get(keyOf(change)).querySelector(".ago"), ago(change.at_ms, now)));
  }

  #drawWarnings({ warnings }) {
    byId("warnings-section").hidden = warnings.length === 0;
    reconcile(byId("warnings"), this.#warnings, warnings, (text) => text, makeWarning);
  }

  #drawPeers({ peers }) {
    byId("peers").hidden = !peers;
    if (peers) {
      const isOld = peers.error ? " What is there now is not in force: the warnings say why." : "";
      setText(byId("peers"), `${counted(peers.peers, "static peer")} from ${peers.path}, read at ${clock(peers.loaded_ms)}.${isOld}`);
      setAttribute(byId("peers"), "title", moment(peers.loaded_ms));
    }
  }
}
