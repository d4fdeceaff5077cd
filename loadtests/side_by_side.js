// The charts of the tab "Side by side": requests/s, p99 and CPU of each row over time, below Locust's table.

const COLOURS = ["#2f81f7", "#e0823d", "#3fa45b", "#d1537f", "#8a6fe0", "#1f9e9e", "#b59a1e", "#a0694b"];
const TITLES = ["Requests/s", "p99 (ms)", "CPU µs/request"];
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 360, HEIGHT = 170, LEFT = 46, BOTTOM = 18;
const base = new URL(".", document.currentScript.src).pathname;

const panel = document.createElement("section");
panel.id = "side-by-side-charts";
panel.style.cssText = "margin: 24px 0; display: flex; flex-wrap: wrap; gap: 16px; font: 13px sans-serif";

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function chart(title, number, rows) {
  const values = rows.flatMap(row => row.points.map(point => point[number + 1]).filter(value => value !== null));
  const end = Math.max(1, ...rows.flatMap(row => row.points.map(point => point[0])));
  const top = Math.max(...values, 1e-9) * 1.1;
  const last = rows.map(row => `${row.name} ${row.points.at(-1)?.[number + 1]?.toFixed(1) ?? "-"}`).join(", ");
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}, last turn: ${last}`,
    style: "flex: 1 1 300px; max-width: 560px; min-width: 0" });
  const x = at => LEFT + (WIDTH - LEFT - 6) * at / end;
  const y = value => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 24) * value / top;
  svg.append(make("text", { x: LEFT, y: 14, fill: "currentColor", "font-size": 13 }, title));
  for (const share of [0, 0.5, 1]) {
    const value = share * top / 1.1;
    svg.append(make("line", { x1: LEFT, x2: WIDTH - 6, y1: y(value), y2: y(value), stroke: "currentColor", opacity: 0.2 }));
    const digits = value >= 100 ? 0 : 1;
    svg.append(make("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end", fill: "currentColor", "font-size": 11 },
      value.toLocaleString("en", { maximumFractionDigits: digits })));
  }
  svg.append(make("text", { x: WIDTH - 6, y: HEIGHT - 3, "text-anchor": "end", fill: "currentColor", "font-size": 11 },
    `${end.toFixed(0)} s`));
  rows.forEach((row, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const points = row.points.filter(point => point[number + 1] !== null);
    const line = points.map(point => `${x(point[0]).toFixed(1)},${y(point[number + 1]).toFixed(1)}`).join(" ");
    svg.append(make("polyline", { points: line, fill: "none", stroke: colour, "stroke-width": 2 }));
    for (const point of points) svg.append(make("circle", { cx: x(point[0]), cy: y(point[number + 1]), r: 2.5, fill: colour }));
  });
  return svg;
}

function legend(rows, own) {
  const text = document.createElement("p");
  text.style.cssText = "flex: 1 0 100%; margin: 0";
  rows.forEach((row, index) => {
    const dot = document.createElement("span");
    dot.style.cssText = `display: inline-block; width: 10px; height: 10px; margin: 0 5px 0 0; border-radius: 5px;
      background: ${COLOURS[index % COLOURS.length]}`;
    const name = document.createElement("span");
    name.style.marginRight = "14px";
    name.append(dot, row.name);
    text.append(name);
  });
  const said = document.createElement("p");
  said.style.cssText = "flex: 1 0 100%; margin: 0";
  said.textContent = own;
  return [text, said];
}

async function draw() {
  const table = document.querySelector("#root table");
  if (!table || new URLSearchParams(location.search).get("tab") !== "side-by-side") return panel.remove();
  const holder = table.parentElement.parentElement;
  if (panel.parentElement !== holder) holder.append(panel);
  if (Date.now() - (draw.asked ?? 0) < 1500) return;
  draw.asked = Date.now();
  const answer = await fetch(`${base}points`);
  if (!answer.ok) return;
  const { rows, own } = await answer.json();
  panel.replaceChildren(...legend(rows, own), ...TITLES.map((title, number) => chart(title, number, rows)));
}

setInterval(() => draw().catch(() => {}), 250);
