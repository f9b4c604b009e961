"use strict";
// Pages work without this file: it copies commands, keeps live parts from moving under a reader, and draws plots.

function prepare(root) {
  for (const button of root.querySelectorAll("button.copy")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  for (const list of root.querySelectorAll("select[data-go]")) {
    list.addEventListener("change", () => list.form.requestSubmit());
  }
  for (const slider of root.querySelectorAll("input[data-list]")) slide(slider);
  for (const plot of root.querySelectorAll("[data-plot]")) draw(plot);
}

// --- the time slider: the list beside it, which it moves, is what its form sends

function slide(slider) {
  const list = document.getElementById(slider.dataset.list);
  const output = slider.parentElement.querySelector("output");
  const last = list.options.length - 1;
  const say = () => {
    const words = list.options[list.selectedIndex].textContent;
    output.textContent = words.split(",")[0];
    slider.setAttribute("aria-valuetext", words);
    slider.parentElement.style.setProperty("--at", slider.value / last);
  };
  slider.addEventListener("input", () => { list.selectedIndex = last - slider.value; say(); });
  list.addEventListener("change", () => { slider.value = last - list.selectedIndex; say(); });
  slider.parentElement.hidden = false;
  list.form.querySelector("button").hidden = true;
  say();
}

// The answer in place of what was asked for says why; a page of its own shows it.
for (const kind of ["htmx:sendError", "htmx:responseError"]) {
  document.addEventListener(kind, (event) => {
    if (event.detail.elt instanceof HTMLFormElement) event.detail.elt.submit();
  });
}

// --- live parts

function isInUse(part) {
  const selected = document.getSelection();
  return part.querySelector("details[open]") !== null
    || (part.contains(document.activeElement) && document.activeElement !== part)
    || (selected && !selected.isCollapsed && part.contains(selected.anchorNode));
}

function setStale(stale) {
  document.getElementById("stale").hidden = !stale;
}

document.addEventListener("htmx:beforeRequest", (event) => {
  const byTime = event.detail.requestConfig.triggeringEvent === undefined
    || event.detail.requestConfig.triggeringEvent?.type === "htmx:poll";
  if (event.target.id === "live" && byTime && (document.hidden || isInUse(event.target))) event.preventDefault();
});
document.addEventListener("htmx:afterSwap", (event) => {
  setStale(false);
  const fresh = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  const foot = fresh.querySelector(".foot time");
  const shown = document.querySelector(".foot time");
  if (foot && shown) shown.replaceWith(foot);
  if (fresh.title) document.title = fresh.title;
  prepare(document.getElementById(event.target.id) || document);
});
document.addEventListener("htmx:sendError", () => setStale(true));
document.addEventListener("htmx:responseError", () => setStale(true));

// --- plots: the numbers are those of the table behind each

function inUnits(unit) {
  if (unit === "bytes") {
    return (value) => {
      if (value === null) return "–";
      let amount = value;
      for (const name of ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]) {
        if (Math.abs(amount) < 1023.95 || name === "PiB") {
          return `${name === "B" ? amount : Number(amount.toFixed(1))} ${name}`;
        }
        amount /= 1024;
      }
      return "";
    };
  }
  if (unit === "seconds") {
    return (value) => {
      if (value === null) return "–";
      if (value < 120) return `${Number(value.toFixed(value < 10 ? 1 : 0))} s`;
      if (value < 7200) return `${Number((value / 60).toFixed(0))} min`;
      return `${Number((value / 3600).toFixed(1))} h`;
    };
  }
  return (value) => (value === null ? "–" : value.toLocaleString("en"));
}

function draw(place) {
  const table = document.getElementById(place.dataset.plot);
  const rows = [...table.tBodies[0].rows].reverse();
  if (rows.length < 2 || typeof uPlot === "undefined") { place.hidden = true; return; }
  const heads = [...table.tHead.rows[0].cells];
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const write = inUnits(place.dataset.unit);
  const read = (column) => rows.map((row) => {
    const text = row.cells[column].dataset.v;
    return text === "" || text === undefined ? null : Number(text);
  });
  const columns = [];
  const series = [{ label: "Begun", value: (_, at) => (at === null ? "–" : new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ")) }];
  const bands = [];
  const strokes = ["--accent", "--amber-fill"];
  heads.forEach((head, column) => {
    const role = head.dataset.series;
    if (!role) return;
    columns.push(read(column));
    const one = { label: head.textContent, value: (_, value) => write(value), spanGaps: true };
    if (role === "low" || role === "high") {
      Object.assign(one, { stroke: "transparent", class: "band", points: { show: false } });
    } else if (role === "outlier") {
      Object.assign(one, { stroke: colour("--red-fill"), paths: () => null, points: { show: true, size: 9, fill: colour("--card"), width: 2 } });
    } else {
      Object.assign(one, { stroke: colour(strokes.shift()), width: 2, points: { show: rows.length < 40, size: 5 } });
    }
    series.push(one);
  });
  const low = series.findIndex((each) => each.label === "Usual from");
  const high = series.findIndex((each) => each.label === "Usual to");
  if (low > 0 && high > 0) bands.push({ series: [high, low], fill: colour("--accent") + "33" });
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "12px system-ui, sans-serif" };
  const day = (at) => new Date(at * 1000).toISOString();
  const dates = (_, ticks) => ticks.map((at) => (ticks[1] - ticks[0] < 86400 ? day(at).slice(11, 16) : day(at).slice(5, 10)));
  const binary = Array.from({ length: 60 }, (_, power) => 2 ** power);
  const size = () => ({ width: Math.max(240, place.clientWidth), height: 200 });
  const plot = new uPlot({
    ...size(),
    series,
    bands,
    tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
    scales: { x: { time: true }, y: { range: (_, least, most) => [Math.min(0, least ?? 0), (most ?? 1) * 1.1 || 1] } },
    axes: [
      { ...axis, values: dates, space: 64 },
      { ...axis, size: 84, values: (_, ticks) => ticks.map(write), ...(place.dataset.unit === "bytes" ? { incrs: binary } : {}) },
    ],
    cursor: { drag: { x: true, y: false } },
  }, [read(0), ...columns], place);
  new ResizeObserver(() => plot.setSize(size())).observe(place);
}

prepare(document);
