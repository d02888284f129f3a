// The status page: what the controller says goes into the fleet, and the fleet is drawn once for each frame at most.

import { act } from "/assets/actions.js";
import { Cells } from "/assets/cells.js";
import { Charts } from "/assets/charts.js";
import { Details } from "/assets/details.js";
import { byId, oncePerFrame } from "/assets/dom.js";
import { Fleet, matcher } from "/assets/fleet.js";
import { Chips, Header } from "/assets/header.js";
import { onKey } from "/assets/key.js";
import { Lists } from "/assets/lists.js";
import { Picture } from "/assets/picture.js";
import { Stream } from "/assets/stream.js";
import { Table } from "/assets/table.js";

/** Up to so many workers each has room for its name in the picture. */
const NAMED = 40;

const fleet = new Fleet();
const pictures = { named: null, cells: null };
const charts = new Charts();
const table = new Table();
const lists = new Lists();
const details = new Details();
let filtered = "";
let lastHeard = null;

const draw = oncePerFrame(() => {
  const workers = fleet.workers();
  const filter = `${chips.state ?? ""}\n${byId("filter").value}`;
  const matches = matcher(byId("filter").value, chips.state);
  header.draw(fleet);
  charts.draw(fleet);
  chips.draw(workers);
  drawPicture(workers.length, matches, filter !== filtered);
  table.draw(fleet, matches, filter !== filtered);
  lists.draw(fleet);
  details.draw(fleet);
  filtered = filter;
  fleet.changed.clear();
  fleet.members = false;
  performance.mark("muster-drawn");
});

const chips = new Chips(draw);
const stream = new Stream({
  topology: (topology) => heard(() => fleet.replace(topology)),
  update: (update) => heard(() => fleet.update(update)),
  lost: (reason, pause) => header.lost(reason, pause, lastHeard),
  refused: (reason) => header.lost(reason, null, lastHeard),
  asleep: () => header.asleep(),
});
const header = new Header(() => stream.retry());

function heard(take) {
  performance.mark("muster-heard");
  take();
  lastHeard = Date.now();
  header.live();
  draw();
}

/** A picture whose place another one takes forgets what it has drawn. */
function drawPicture(many, matches, isFiltered) {
  const mode = many > NAMED ? "cells" : "named";
  if (!pictures[mode]) {
    pictures.named = mode === "named" ? new Picture() : null;
    pictures.cells = mode === "cells" ? new Cells() : null;
    byId("picture").replaceChildren(pictures[mode].node);
  }
  pictures[mode].draw(fleet, matches, isFiltered);
}

document.addEventListener("click", (event) => {
  const action = event.target.closest("[data-worker-action]");
  const node = event.target.closest("[data-node]");
  if (action) {
    act(action.dataset.action, fleet.nodes.get(action.dataset.workerAction));
  } else if (node) {
    details.open(node.dataset.node, fleet);
  }
});
byId("filter").addEventListener("input", draw);
table.onSort = draw;
onKey((key) => stream.keyChanged(key));
stream.run();
