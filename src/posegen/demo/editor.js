// The pose editor: an SVG of people whose joints can be dragged. Runs as the body of a function of gradio's HTML component, with `element` (its node), `props`
// (value and the skeleton_facts() of pose_editor.py), `trigger` (sends an event) and `watch` (calls back when the server has changed the value).
//
// value = {people: [[[x, y, v] x 17], ...], selected: i}; x and y are shares of the canvas, v is 2 for a joint that is drawn and 0 for one that is not.

const NS = "http://www.w3.org/2000/svg";
const svg = element.querySelector("svg");
const said = element.querySelector(".pe-said");
const UNIT = 1000; // of the viewBox's shorter side
const [height, width] = props.size.map((side) => (side / Math.min(...props.size)) * UNIT);
const HISTORY = 100;
const REACH = 0.6; // how far beyond the canvas a joint may lie, as a share of it ...
const MARGIN = 0.07; // ... and how far it may be dragged, where it is still seen

let state = clean(props.value);
let before = [];
let drag = null;

svg.setAttribute("viewBox", [-MARGIN * width, -MARGIN * height, (1 + 2 * MARGIN) * width, (1 + 2 * MARGIN) * height].join(" "));

function clean(value) {
  const people = (value?.people ?? []).map((person) => person.map(([x, y, v]) => [x, y, v]));
  return { people, selected: Math.min(Math.max(value?.selected ?? 0, 0), Math.max(people.length - 1, 0)) };
}

const copy = (value) => JSON.parse(JSON.stringify(value));
const bounded = (value, reach = REACH) => Math.round(Math.min(1 + reach, Math.max(-reach, value)) * 1e5) / 1e5;
const current = () => state.people[state.selected];

function node(name, attributes, parent, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function draw() {
  svg.replaceChildren();
  node("rect", { class: "pe-frame", x: 0, y: 0, width, height }, svg);
  for (const share of [0.25, 0.5, 0.75]) {
    node("line", { class: "pe-grid", x1: share * width, x2: share * width, y1: 0, y2: height }, svg);
    node("line", { class: "pe-grid", x1: 0, x2: width, y1: share * height, y2: share * height }, svg);
  }
  const order = state.people.map((_, i) => i).filter((i) => i !== state.selected);
  if (state.people.length) order.push(state.selected); // the selected one on top, so that its joints can be reached
  for (const i of order) drawPerson(i);
  element.querySelector(".pe-count").textContent = state.people.length === 1 ? "1 person" : `${state.people.length} people`;
  element.querySelector(".pe-save").disabled = !state.people.length;
  for (const button of element.querySelectorAll("button[data-act]")) {
    const act = button.dataset.act;
    const full = state.people.length >= props.most;
    button.disabled = act === "undo" ? !before.length : act === "add" ? full : act === "duplicate" ? full || !current() : !current();
  }
}

function drawPerson(i) {
  const person = state.people[i];
  const group = node("g", { class: i === state.selected ? "pe-person pe-selected" : "pe-person", "data-person": i }, svg);
  const at = (joint) => [person[joint][0] * width, person[joint][1] * height];
  const sideOf = (a, b) => {
    const ends = new Set([a, b].filter((joint) => joint !== 0).map((joint) => props.sides[joint])); // the nose belongs to no side
    return ends.size === 1 ? [...ends][0] : "middle";
  };
  const shown = props.limbs.filter(([a, b]) => person[a][2] > 0 && person[b][2] > 0);
  for (const kind of ["pe-halo", "pe-limb"]) {
    for (const [a, b] of shown) {
      const [[x1, y1], [x2, y2]] = [at(a), at(b)];
      node("line", { class: `${kind} pe-${sideOf(a, b)}`, x1, y1, x2, y2, "data-person": i }, group);
    }
  }
  person.forEach(([, , v], joint) => {
    const [cx, cy] = at(joint);
    if (v <= 0 && i !== state.selected) return;
    const facts = { class: `pe-joint pe-${props.sides[joint]}${v > 0 ? "" : " pe-hidden"}`, cx, cy, r: joint < 5 ? 13 : 17 };
    const dot = node("circle", { ...facts, "data-person": i, "data-joint": joint, tabindex: -1 }, group);
    node("title", {}, dot, `${props.joints[joint]}${v > 0 ? "" : " (hidden)"}`);
  });
}

function keep() {
  before.push(copy(state));
  if (before.length > HISTORY) before.shift();
}

function send() {
  draw();
  props.value = copy(state);
  trigger("change");
}

function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [point.x / width, point.y / height];
}

const tell = (text) => { said.textContent = text; };
const HELP = "Drag a joint, or a limb to move the whole person. Double-click hides a joint. Arrow keys nudge, + and − resize, Delete removes.";

svg.addEventListener("pointerdown", (event) => {
  const { person, joint } = event.target.dataset;
  if (person === undefined || event.button !== 0) return;
  event.preventDefault();
  svg.focus({ preventScroll: true });
  state.selected = Number(person);
  drag = { joint: joint === undefined ? null : Number(joint), from: place(event), start: copy(current()), old: copy(state), moved: false };
  svg.setPointerCapture(event.pointerId);
  draw();
});

svg.addEventListener("pointermove", (event) => {
  if (!drag) {
    const { joint } = event.target.dataset;
    tell(joint === undefined ? HELP : props.joints[Number(joint)]);
    return;
  }
  const [x, y] = place(event);
  const [dx, dy] = [x - drag.from[0], y - drag.from[1]];
  drag.moved ||= Math.hypot(dx, dy) > 0.002;
  if (!drag.moved) return;
  current().forEach((spot, joint) => {
    if (drag.joint !== null && joint !== drag.joint) return;
    const reach = drag.joint === null ? REACH : MARGIN;
    spot[0] = bounded(drag.start[joint][0] + dx, reach);
    spot[1] = bounded(drag.start[joint][1] + dy, reach);
  });
  draw();
});

// Two taps on a joint within this time hide or show it. Counted here, because a browser counts clicks on nodes, and drawing makes new ones.
const TWICE = 400; // ms
let tapped = { time: -Infinity };

function release(event) {
  if (!drag) return;
  const { moved, old, joint } = drag;
  drag = null;
  if (moved) {
    before.push(old);
    send();
  } else if (joint !== null && tapped.joint === joint && tapped.person === state.selected && event.timeStamp - tapped.time < TWICE) {
    keep();
    current()[joint][2] = current()[joint][2] > 0 ? 0 : 2;
    tapped = { time: -Infinity };
    send();
  } else {
    tapped = { joint, person: state.selected, time: event.timeStamp };
  }
}
svg.addEventListener("pointerup", release);
svg.addEventListener("pointercancel", release);

function middle(person) {
  const seen = person.filter(([, , v]) => v > 0);
  const span = (axis) => { const all = (seen.length ? seen : person).map((spot) => spot[axis]); return (Math.min(...all) + Math.max(...all)) / 2; };
  return [span(0), span(1)];
}

function moved(person, dx, dy) {
  return person.map(([x, y, v]) => [bounded(x + dx), bounded(y + dy), v]);
}

function resized(person, factor) {
  const [mx, my] = middle(person);
  return person.map(([x, y, v]) => [bounded(mx + (x - mx) * factor), bounded(my + (y - my) * factor), v]);
}

// Left and right keep their bodies: the picture is mirrored, so the joint names change sides with it.
function mirrored(person) {
  const [mx] = middle(person);
  return props.flip.map((joint) => { const [x, y, v] = person[joint]; return [bounded(2 * mx - x), y, v]; });
}

function fresh() {
  const shrunk = resized(props.standing.map((spot) => [...spot]), state.people.length ? 0.8 : 1);
  return moved(shrunk, state.people.length ? 0.22 * (state.people.length % 2 ? 1 : -1) * Math.ceil(state.people.length / 2) : 0, 0);
}

const ACTS = {
  add: () => { state.people.push(fresh()); state.selected = state.people.length - 1; },
  duplicate: () => { state.people.push(moved(current(), 0.12, 0)); state.selected = state.people.length - 1; },
  remove: () => { state.people.splice(state.selected, 1); state.selected = Math.max(0, state.people.length - 1); },
  mirror: () => { state.people[state.selected] = mirrored(current()); },
  larger: () => { state.people[state.selected] = resized(current(), 1.1); },
  smaller: () => { state.people[state.selected] = resized(current(), 1 / 1.1); },
};

function act(name) {
  if (name === "undo") {
    if (!before.length) return;
    state = before.pop();
  } else {
    const full = state.people.length >= props.most;
    if ((name === "add" || name === "duplicate") && full) return;
    if (name !== "add" && !current()) return;
    keep();
    ACTS[name]();
  }
  send();
}

element.querySelector(".pe-tools").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (button && !button.disabled) act(button.dataset.act);
});

// The pose as a COCO file, in pixels of the canvas whose top-left pixel has its centre at (0, 0).
function coco() {
  const [rows, columns] = props.size;
  const flat = (person) => person.flatMap(([x, y, v]) => (v > 0 ? [x * columns - 0.5, y * rows - 0.5, 2] : [0, 0, 0]).map((n) => Math.round(n * 1e3) / 1e3));
  const annotations = state.people.map((person, i) => ({ id: i + 1, image_id: 1, category_id: 1, keypoints: flat(person) }));
  return { images: [{ id: 1, height: rows, width: columns }], annotations };
}

element.querySelector(".pe-save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(coco())], { type: "application/json" }));
  link.download = "pose.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

svg.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const acts = { "+": "larger", "=": "larger", "-": "smaller", Delete: "remove", Backspace: "remove", m: "mirror" };
  if ((event.ctrlKey || event.metaKey) && event.key === "z") act("undo");
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key in steps && current()) {
    keep();
    const [dx, dy] = steps[event.key].map((step) => step * (event.shiftKey ? 0.05 : 0.01));
    state.people[state.selected] = moved(current(), dx, dy);
    send();
  } else if (event.key in acts) act(acts[event.key]);
  else return;
  event.preventDefault();
});

watch("value", () => {
  keep();
  state = clean(props.value);
  draw();
});

tell(HELP);
draw();
