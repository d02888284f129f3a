// The fleet over the last minutes: six numbers, each with its line.

import { byId, el, setAttribute, setText } from "/assets/dom.js";
import { Graph, highest } from "/assets/graph.js";
import { milliseconds, number, span } from "/assets/words.js";

const WINDOW = 300_000;
/** Where less is known, the line still has so long to grow into: milliseconds. */
const SHORTEST = 60_000;
/** A number each second jumps about: what is shown large is the mean of so many. */
const MEAN_OF = 5;

const CHARTS = [
  { name: "Requests", unit: "per second", field: "requests", colour: "accent", least: 2, isRate: true },
  { name: "Failures", unit: "per second", field: "failures", colour: "down", least: 2, isRate: true },
  { name: "Tokens", unit: "per second", field: "tokens", colour: "ready", least: 10, isRate: true },
  { name: "First token", unit: "median", field: "ttft_ms", colour: "suspect", least: 10, words: milliseconds },
  { name: "In flight", unit: "requests", field: "tickets", colour: "draining", least: 2 },
  { name: "Waiting", unit: "requests", field: "waiting", colour: "paused", least: 2 },
];

class Chart {
  #graph = new Graph("chart-graph");
  #value = el("span.chart-value.number");
  #unit = el("span.chart-unit.muted");
  #most = el("span.chart-most.muted.number", { "aria-hidden": "true" });
  #cursor = el("span.chart-cursor", { hidden: true });
  #samples = [];
  #now = 0;
  #window = WINDOW;
  #pointed = null;

  constructor(what) {
    this.what = what;
    this.words = what.words ?? number;
    const plot = el("div.chart-plot", {}, this.#graph.node, this.#cursor, this.#most);
    this.node = el(
      "figure.chart.card",
      { "data-chart": what.field, "data-colour": what.colour },
      el("figcaption", { text: what.name }),
      el("p.chart-now", {}, this.#value, this.#unit),
      plot,
    );
    plot.addEventListener("pointermove", (event) => this.#point(event, plot));
    plot.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.#say();
    });
  }

  draw(samples, now) {
    this.#samples = samples.filter((sample) => sample.at_ms > now - WINDOW);
    this.#now = now;
    this.#window = Math.max(SHORTEST, now - (this.#samples[0]?.at_ms ?? now));
    const values = this.#values();
    const most = highest(values, this.what.least);
    const points = this.#samples.map((sample, index) => ({ x: this.#x(sample), value: values[index] }));
    const words = `${this.what.name} ${this.what.unit}: ${this.words(this.#current())} now, at most `;
    const top = values.some((value) => value !== null) ? highest(values, 0) : null;
    this.#graph.draw(points, most * 1.08, `${words}${this.words(top)} in the last ${span(this.#window + 500)}`);
    setText(this.#most, top ? this.words(most) : ""); // a scale that nothing stands against says nothing
    setAttribute(this.node, "data-calm", this.what.field === "failures" && !values.some((value) => value > 0));
    this.#say();
  }

  #values() {
    return this.#samples.map((sample) => sample[this.what.field] ?? null);
  }

  #x(sample) {
    return 100 - ((this.#now - sample.at_ms) / this.#window) * 100;
  }

  /** The last value; of a rate, the mean of the last few. */
  #current() {
    const values = this.#values();
    if (!this.what.isRate) {
      return values.findLast((value) => value !== null) ?? (this.what.words ? null : 0);
    }
    const last = values.slice(-MEAN_OF);
    return last.length === 0 ? 0 : last.reduce((sum, value) => sum + value, 0) / last.length;
  }

  #point(event, plot) {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 100;
    const distance = (sample) => Math.abs(this.#x(sample) - x);
    this.#pointed = this.#samples.reduce((best, one) => (!best || distance(one) < distance(best) ? one : best), null);
    this.#say();
  }

  #say() {
    const sample = this.#pointed;
    this.#cursor.hidden = !sample;
    if (sample) {
      this.#cursor.style.left = `${Math.max(0, this.#x(sample))}%`;
    }
    const value = sample ? (sample[this.what.field] ?? null) : this.#current();
    setText(this.#value, this.words(value));
    setText(this.#unit, sample ? `${span(this.#now - sample.at_ms)} ago` : this.what.unit);
    setAttribute(this.node, "data-alarm", this.what.field === "failures" && value > 0);
  }
}

export class Charts {
  #charts = CHARTS.map((what) => new Chart(what));

  constructor() {
    byId("charts").append(...this.#charts.map((chart) => chart.node));
  }

  draw(fleet) {
    const now = fleet.now();
    this.#charts.forEach((chart) => chart.draw(fleet.history, now));
  }
}
