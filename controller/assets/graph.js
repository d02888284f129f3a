// Lines over time, drawn as SVG in a box of 100 by 100 that the style sheet stretches.

import { setAttribute, svg } from "/assets/dom.js";

const HEIGHT = 100;
/** Room above the highest value and below nought, so that the line's thickness is not cut off. */
const EDGE = 4;

/** Points that are further apart are not joined: nothing was told between them. */
const GAP = 5;

/**
 * A path through points that are `x` from 0 to 100 and a value, `null` where there is none.
 * @returns {{line: string, area: string}}
 */
export function paths(points, most) {
  const y = (value) => (HEIGHT - EDGE - (value / most) * (HEIGHT - 2 * EDGE)).toFixed(1);
  const drawn = runs(points).map((run) => ({
    from: run[0].x.toFixed(2),
    to: run.at(-1).x.toFixed(2),
    line: run.map(({ x, value }) => `${x.toFixed(2)} ${y(value)}`).join("L"),
  }));
  return {
    line: drawn.map(({ line }) => `M${line}`).join(""),
    area: drawn.map(({ from, to, line }) => `M${from} ${HEIGHT}L${line}L${to} ${HEIGHT}Z`).join(""),
  };
}

/** Points that are joined, run by run; a lone one becomes a dash, for a line of one point is nothing. */
function runs(points) {
  const all = [];
  for (const point of points.filter(({ value }) => value !== null)) {
    const run = all.at(-1);
    if (run && point.x - run.at(-1).x <= GAP) {
      run.push(point);
    } else {
      all.push([point]);
    }
  }
  return all.map((run) => (run.length > 1 ? run : [run[0], { ...run[0], x: run[0].x + 0.5 }]));
}

/** The highest of some values, and at least so much. */
export const highest = (values, least) => values.reduce((most, value) => Math.max(most, value ?? 0), least);

/** A drawing of one line; `draw` it as often as there is something new. */
export class Graph {
  #line = svg("path.graph-line", { "vector-effect": "non-scaling-stroke" });
  #area = svg("path.graph-area");

  constructor(className) {
    this.node = svg(`svg.graph.${className}`, { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none" });
    this.node.append(this.#area, this.#line);
  }

  /** @param label what it shows, in words; without one it is decoration beside a number that says it. */
  draw(points, most, label) {
    const { line, area } = paths(points, most);
    setAttribute(this.#line, "d", line);
    setAttribute(this.#area, "d", area);
    setAttribute(this.node, "role", label ? "img" : null);
    setAttribute(this.node, "aria-label", label ?? null);
    setAttribute(this.node, "aria-hidden", label ? null : "true");
  }
}

/** So many seconds are shown where fewer are known, so that the first ones do not fill a line. */
const FEWEST = 30;

/** Values, one each second, as points whose last is at the right edge. */
export function spread(values) {
  const step = 100 / (Math.max(FEWEST, values.length) - 1);
  return values.map((value, index) => ({ x: 100 - (values.length - 1 - index) * step, value }));
}
