import Foundation

/// alpha_bar of every level, highest resolution first, from the bundle's tables.
///
/// A table has T + 1 entries. Index 0 is clean (alpha_bar 1), index T is noise. For table index t the
/// network receives t - 1.
public struct NoiseSchedule: Sendable, Equatable {
  /// The spacing of the table indices that a sampler visits.
  public enum Grid: String, CaseIterable, Sendable, Codable {
    /// Even in the index, as published.
    case even
    /// Even in log-SNR.
    case logSNR = "log_snr"
  }

  /// The unshifted table.
  public let base: [Double]
  /// One table per level.
  public let tables: [[Double]]

  /// Throws if a table does not decrease from 1 towards 0, or if the lengths differ.
  public init(base: [Double], tables: [[Double]]) throws {
    for table in [base] + tables {
      let falls = zip(table, table.dropFirst()).allSatisfy { $0 > $1 }
      guard table.count == base.count, table.count >= 2, table[0] == 1, falls,
        table[table.count - 1] > 0
      else {
        throw MatryoshkaError.invalidArgument(
          name: "alpha_bar", reason: "the tables must decrease from 1 towards 0 and have equal lengths")
      }
    }
    (self.base, self.tables) = (base, tables)
  }

  /// The length of the tables, minus one.
  public var numSteps: Int { base.count - 1 }

  /// The schedule without the `count` highest levels.
  public func dropping(_ count: Int) throws -> NoiseSchedule {
    try NoiseSchedule(base: base, tables: Array(tables.dropFirst(count)))
  }

  /// log(alpha_bar / (1 - alpha_bar)) of the unshifted table; infinite at index 0.
  package func logSNR(_ index: Int) -> Double {
    let alphaBar = base[index]
    return alphaBar >= 1 ? .infinity : log(alphaBar / (1 - alphaBar))
  }

  /// Table indices from noisy to clean; the last is 0.
  ///
  /// - Parameter steps: evaluations of the network; nil for the whole table.
  public func indices(steps: Int?, grid: Grid) throws -> [Int] {
    guard let steps else { return Array((0...numSteps).reversed()) }
    guard (1...numSteps).contains(steps) else {
      throw MatryoshkaError.invalidArgument(
        name: "steps", reason: "expected 1 to \(numSteps), got \(steps)")
    }
    let stride = Double(numSteps + 1) / Double(steps + 1)
    let even = (0...steps).reversed().map { Int((Double($0) * stride).rounded(.toNearestOrEven)) }
    return grid == .even ? even : try evenInLogSNR(steps, from: even[0])
  }

  private func evenInLogSNR(_ steps: Int, from start: Int) throws -> [Int] {
    let table = (1...numSteps).map(logSNR)
    let (first, last) = (table[start - 1], table[0])
    let gap = steps > 1 ? (last - first) / Double(steps - 1) : 0
    var picked: [Int] = []
    for step in 0..<steps {
      // the last value is exact, as in numpy.linspace
      let wanted = step == steps - 1 && steps > 1 ? last : first + Double(step) * gap
      var nearest = 0
      for index in table.indices where abs(table[index] - wanted) < abs(table[nearest] - wanted) {
        nearest = index
      }
      let index = nearest + 1
      picked.append(picked.last.map { min(index, $0 - 1) } ?? index)
    }
    guard let lowest = picked.last, lowest >= 1 else {
      throw MatryoshkaError.invalidArgument(
        name: "steps", reason: "too many for an even log-SNR grid, got \(steps)")
    }
    return picked + [0]
  }
}
