"""How near the planner comes to the optimum, and how long it takes.

python tests/benchmarks/placement.py [--cases 500] [--json FILE]

500 random small cases (2 to 5 jobs on 1 to 4 devices, costs up to 30 times apart) beside the optimum found by brute
force over every order and width, target at most 1.02 times as long; the same without the search, as more than twelve
jobs are placed. Then 1,000 jobs on 100 devices, target at most a second, and other sizes, beside a bound that no
schedule can be shorter than.
"""

import statistics

from bench import Report, arguments, benchmark, median_s, parsed
from placement_cases import Case, large_case, optimal_makespan, options_of, small_case

from ebdiff_orchestrator.placement.schedule import place
from ebdiff_orchestrator.placement.search import finish_times, first_order, lower_bound

SIZES = ((1000, 100), (100, 16), (100, 100), (30, 10), (16, 32), (10, 16), (6, 8), (3, 3))


def main() -> None:
    options = parsed(arguments(__doc__, cases=500, rounds=5), cases=25, rounds=1)
    with benchmark("Placement: the planner", options) as (report, _):
        add_optimality(report, options.cases)
        for jobs, devices in SIZES[1:2] if options.short else SIZES:
            add_size(report, jobs, devices, options.rounds)


def add_optimality(report: Report, cases: int) -> None:
    planned, unsearched = [], []
    for case in map(small_case, range(cases)):
        optimum_s = optimal_makespan(case)
        planned.append(planned_makespan(case) / optimum_s)
        order = first_order(options_of(case), case.devices)
        unsearched.append(finish_times(order, case.devices)[-1] / optimum_s)
    report.add(f"makespan over the optimum, worst of {cases}", max(planned), "x", at_most=1.02)
    report.add(f"makespan over the optimum, mean of {cases}", statistics.mean(planned), "x")
    report.add("the first order alone, worst", max(unsearched), "x")
    report.add("the first order alone, mean", statistics.mean(unsearched), "x")


def add_size(report: Report, jobs: int, devices: int, rounds: int) -> None:
    case = large_case(jobs, devices)
    plan_s = median_s(lambda: planned_makespan(case), rounds, warm_up=0)
    target = 1.0 if (jobs, devices) == (1000, 100) else None
    report.add(f"{jobs} jobs on {devices} devices: planned in", plan_s, "s", at_most=target)
    bound_s = lower_bound(options_of(case), devices)
    report.add(f"{jobs} jobs on {devices} devices: makespan over the bound", planned_makespan(case) / bound_s, "x")


def planned_makespan(case: Case) -> float:
    return place(case.works, case.devices, "balanced", case.efficiency).makespan_s


if __name__ == "__main__":
    main()
