// Elements, made and changed. Text is only ever set as text: a worker's name may hold anything.

const SVG = "http://www.w3.org/2000/svg";

/** The element of an id, which the page has. */
export const byId = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} name its tag, with a class after a dot where it has one: `span.name`
 * @param {object} attributes `text` is its text; the others are attributes, left out where `null` or `false`
 * @param {...(Node|null)} children
 */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name.split(".")[0]), name, attributes, children);
}

/** The same for a drawing. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name.split(".")[0]), name, attributes, children);
}

function fill(node, name, attributes, children) {
  const [, ...classes] = name.split(".");
  node.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") {
      node.textContent = value;
    } else {
      setAttribute(node, key, value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets a text where it has changed: an untouched node costs the browser nothing. */
export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
}

/** Sets an attribute where it has changed; `null` and `false` take it away. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) {
      node.removeAttribute(name);
    }
    return;
  }
  const wanted = value === true ? "" : String(value);
  if (node.getAttribute(name) !== wanted) {
    node.setAttribute(name, wanted);
  }
}

/** Sets a custom property of CSS where it has changed. */
export function setProperty(node, name, value) {
  if (node.style.getPropertyValue(name) !== String(value)) {
    node.style.setProperty(name, value);
  }
}

/**
 * Makes the children of a node those of `items`, in their order, and keeps those that are there already, with the focus.
 * @param {Map<string, Element>} known elements by key; kept by the caller between calls
 */
export function reconcile(parent, known, items, keyOf, make) {
  const wanted = new Set(items.map(keyOf));
  // First of all: with one that goes still in its place, all that come after it would be moved.
  for (const [key, node] of known) {
    if (!wanted.has(key)) {
      node.remove();
      known.delete(key);
    }
  }
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = known.get(key);
    if (!node) {
      node = make(item);
      known.set(key, node);
    }
    if (place && place.nextElementSibling === node) {
      parent.append(place); // one that comes later: it alone is moved, and not all that come before it
      place = node;
    }
    if (node === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(node, place);
    }
  }
  if (focused && focused !== document.activeElement) {
    focused.focus({ preventScroll: true }); // an element that is moved loses it
  }
}

/** Calls `work` at most once for each frame, however often it is asked for. */
export function oncePerFrame(work) {
  let asked = false;
  return () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        work();
      });
    }
  };
}
