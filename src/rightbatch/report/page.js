// Closes the tables that stand open for readers without JavaScript, and draws the plots.
document.documentElement.classList.add("js");
const tables = document.querySelectorAll("details.numbers");
const setOpen = (open) => tables.forEach((table) => { table.open = open; });
setOpen(false);

document.addEventListener("DOMContentLoaded", () => {
  const plots = document.querySelectorAll("figure > .plot");
  const options = { responsive: true, displayModeBar: false };
  plots.forEach((plot) => {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    Plotly.newPlot(plot, figure.data, figure.layout, options);
  });
  const resize = () => plots.forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", () => { setOpen(true); resize(); });
  window.addEventListener("afterprint", () => { setOpen(false); resize(); });
});
