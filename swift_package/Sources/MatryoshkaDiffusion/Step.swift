import DiffusionCore
import Foundation

/// The state of a run after one step.
public struct Step: Sendable {
  /// The number of steps done before this one.
  public let index: Int
  /// The total number of steps.
  public let total: Int
  /// Clean estimates of the requested sides, highest level first.
  public let previews: [Picture]
  /// The result; only in the last step, which is never dropped.
  public let finished: Finished?
  /// The duration of this step, in seconds.
  public let seconds: Double
  /// The thermal state of the device.
  public let thermalState: ThermalState
  /// Sentences about what is not as it was asked for, such as a prompt whose end is cut off. Every step
  /// of a run has the same.
  public let remarks: [String]
}

/// The result of a run.
public struct Finished: Sendable {
  /// One picture per level that ran, highest first.
  public let pictures: [Picture]
  /// The pictures before rounding to 8 bits: (1, 3, side, side), in [-1, 1].
  public let values: [Tensor]

  /// The picture of the highest level.
  public var picture: Picture { pictures[0] }
}

/// Which clean estimates become pictures at every step. Each costs its bytes and little time.
public enum Previews: Sendable, Equatable {
  /// None.
  case none
  /// These sides, if their levels run.
  case sides(Set<Int>)
  /// Every level.
  case all

  func include(_ side: Int) -> Bool {
    switch self {
    case .none: false
    case .sides(let sides): sides.contains(side)
    case .all: true
    }
  }
}

/// `ProcessInfo.ThermalState`, or unknown if the system has none.
public enum ThermalState: String, Sendable {
  /// The system's own names; unknown on Linux.
  case nominal, fair, serious, critical, unknown

  /// The current state of the device.
  public static var current: ThermalState {
    #if canImport(Darwin)
      switch ProcessInfo.processInfo.thermalState {
      case .nominal: .nominal
      case .fair: .fair
      case .serious: .serious
      case .critical: .critical
      @unknown default: .unknown
      }
    #else
      .unknown
    #endif
  }
}
